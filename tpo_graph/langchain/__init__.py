"""TPO in the place of a LangChain model: `ChatTPO` in a chain, `TPOMiddleware` in an agent."""
