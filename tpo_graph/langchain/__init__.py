"""TPO where LangChain has a model: `ChatTPO` in a chain, `TPOMiddleware` in an agent."""
