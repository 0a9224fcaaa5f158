"""A chat model as reward model: it grades every response from 1 to 9."""

import math
from collections.abc import Sequence

from langchain_core.messages import BaseMessage

from tpo_graph.accounting import no_usage
from tpo_graph.errors import RewardError
from tpo_graph.rewards.base import RunContext, Scoring, charge_errors, gather
from tpo_graph.rewards.judge.base import ChatModelJudge, judge_arguments
from tpo_graph.rewards.judge.prompts import POINTWISE, joined_rubric, render_conversation
from tpo_graph.types import Options


class JudgeReward(ChatModelJudge):
    """Grades with any chat model, in one request a response.

    Its grade is the expectation over the digits that it might write as its verdict, weighted with their probabilities
    (`top_logprobs`), at temperature 0. So two responses that would both get a 7 still differ. Where a provider has no
    log probabilities, the grade comes from structured output or the text.

    Examples:
        >>> import asyncio
        >>> from langchain_core.messages import HumanMessage
        >>> from tpo_graph.testing import ScriptedChatModel
        >>> judge = JudgeReward(ScriptedChatModel(["7", "3"]), preference="Short is better.", max_concurrency=1)
        >>> asyncio.run(judge.score([HumanMessage("Why?")], ["Because.", "That is a long story."]))
        [7.0, 3.0]

    Args:
        model: the judge: a chat model, or the name of one as `load_policy` takes it, which is loaded at once.
        preference: what a good response is, in words; it is the rubric, and the run's preference is added to it. With
            neither there is a general one.
        prompt: what the judge is shown; None for this package's own words.
        samples: grades to take the mean of where log probabilities are missing.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: an argument that can't be used.
    """

    default_prompt = POINTWISE

    @property
    def highest_reward(self) -> float | None:
        """The top of the scale; None where the prompt's own reader takes any number."""
        return max(map(float, self.labels), default=None)

    async def score_in_detail(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> Scoring:
        """Grade every response as the next assistant turn of the conversation.

        Args:
            messages: the conversation, the system message and earlier turns included.
            responses: texts to grade; may be empty.
            run: the run that they are graded for; its preference is added to the rubric.

        Returns:
            A float on the prompt's scale, from 1 to 9 as a rule, for each response; NaN where the judge gave no grade.

        Raises:
            RewardError: it graded none of them.
        """
        shared = {
            "rubric": joined_rubric(self.preference, run.preference),
            "conversation": render_conversation(messages),
        }
        texts = list(dict.fromkeys(responses))
        usage = no_usage()
        failures: dict[str, RewardError] = {}

        async def grade(text: str) -> float:
            request = self._prompt.render({**shared, "response": text})
            try:
                probabilities = await self._probabilities(request, usage)
            except RewardError as error:
                failures[text] = error
                return math.nan
            return sum(float(grade) * share for grade, share in probabilities.items())

        with charge_errors(usage):
            grades = dict(zip(texts, await gather(grade(text) for text in texts), strict=True))
            if texts and len(failures) == len(texts):
                raise failures[texts[-1]]
        reasons = {text: error.message for text, error in failures.items()}
        return Scoring([grades[response] for response in responses], usage=usage, reasons=reasons)


def load_judge(name: str, **options: Options) -> JudgeReward:
    """A judge that grades each response.

    Args:
        name: a chat model, as in "openai:gpt-4o-mini" or "vllm:http://127.0.0.1:8000/v1#model".
        **options: `preference`, `prompt` (or a table or TOML file of one), `samples`, `max_concurrency`; others go to
            the chat model.

    Raises:
        ConfigurationError: a name or an option that can't be used.
        PolicyError: the chat model's server does not answer.
    """
    return JudgeReward(**judge_arguments("judge", name, options))
