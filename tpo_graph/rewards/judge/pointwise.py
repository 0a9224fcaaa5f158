"""A chat model as reward model: it grades every response from 1 to 9."""

import math
from collections.abc import Sequence

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from tpo_graph.errors import ConfigurationError, RewardError
from tpo_graph.rewards.concurrency import gather
from tpo_graph.rewards.judge.choice import Verdicts
from tpo_graph.rewards.judge.prompts import POINTWISE, JudgePrompt, joined_rubric, render_conversation
from tpo_graph.rewards.parts import PartialRewardModel, PartialScores, RunContext
from tpo_graph.types import PhaseUsage

__all__ = ["JudgeReward"]

_GRADES = tuple("123456789")


class JudgeReward(PartialRewardModel):
    """Grades with any chat model, in one request a response.

    The judge writes no reasoning: its grade is the expectation over the digits that it might write next, weighted with
    their probabilities (`top_logprobs`), at temperature 0. So two responses that would both get a 7 still differ.
    Where a provider tells no log probabilities, the grade comes from structured output.

    Example:
        >>> import asyncio
        >>> from langchain_core.messages import HumanMessage
        >>> from tpo_graph.testing import ScriptedChatModel
        >>> judge = JudgeReward(ScriptedChatModel(["7", "3"]), preference="Short is better.", max_concurrency=1)
        >>> asyncio.run(judge.score([HumanMessage("Why?")], ["Because.", "That is a long story."]))
        [7.0, 3.0]

    Args:
        model: the judge.
        preference: what a good response is, in words; it is the rubric, and the run's preference is added to it. With
            neither there is a general one.
        prompt: what the judge is told, in place of this package's own words.
        samples: grades to take the mean of where log probabilities are missing.
        max_concurrency: requests in flight at a time, in each event loop.

    Raises:
        ConfigurationError: an argument that can't be used.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        preference: str = "",
        prompt: JudgePrompt = POINTWISE,
        samples: int = 1,
        max_concurrency: int = 16,
    ) -> None:
        if prompt.pairwise:
            raise ConfigurationError("The prompt of a judge that grades must not be pairwise.")
        self.preference = preference.strip()
        self._prompt = prompt
        self._verdicts = Verdicts(model, _GRADES, samples=samples, max_concurrency=max_concurrency)

    @property
    def usage(self) -> PhaseUsage:
        """Requests and tokens of all calls so far; its seconds stay 0."""
        return self._verdicts.usage

    async def score_part(
        self, messages: Sequence[BaseMessage], responses: Sequence[str], run: RunContext
    ) -> PartialScores:
        """Grade every response as the next assistant turn of the conversation; see `PartialRewardModel.score_part`.

        Returns:
            A float from 1 to 9 for each response; NaN where the judge gave no grade.

        Raises:
            RewardError: it graded none of them.
        """
        shared = {
            "rubric": joined_rubric(self.preference, run.preference),
            "conversation": render_conversation(messages),
        }
        texts = list(dict.fromkeys(responses))
        failures: list[RewardError] = []

        async def grade(text: str) -> float:
            request = self._prompt.render({**shared, "response": text})
            try:
                verdict = await self._verdicts.ask(request, run.report.used)
            except RewardError as error:
                failures.append(error)
                run.report.reasons[text] = error.message
                return math.nan
            return sum(int(label) * share for label, share in verdict.items())

        grades = await gather(grade(text) for text in texts)
        if texts and len(failures) == len(texts):
            raise failures[-1]
        by_text = dict(zip(texts, grades, strict=True))
        return [by_text[response] for response in responses]
