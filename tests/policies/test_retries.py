"""How often a request is sent, how long it may take, and what ends it, against real servers."""

import time
from collections.abc import Callable, Iterator
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import Field

from tpo_graph import TPOSettings
from tpo_graph.errors import BudgetError, PolicyError, RewardError
from tpo_graph.policies.retries import limited
from tpo_graph.policies.sampling import Sampler
from tpo_graph.rewards.combinations import WeightedSum
from tpo_graph.rewards.judge.pointwise import JudgeReward
from tpo_graph.settings import Sampling
from tpo_graph.testing import ErrorAnswer, FaultServer, ScriptedChatModel

ASK = [HumanMessage("hello there")]
PLAIN = Sampling()
AT_ONCE = ErrorAnswer(503, retry_after=0)


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultServer]]:
    """Starts servers; `always` is what happens to every request."""
    servers: list[FaultServer] = []

    def start(always: str | ErrorAnswer = "", **options) -> FaultServer:
        faults = {always: 1.0} if always else {}
        servers.append(FaultServer(lambda request, number: f"text {number}", faults, **options).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def model_of(server, **options):
    return ChatOpenAI(model="any", base_url=server.url, api_key="any", **options)


async def drawn(policy, n=1, left=None, **settings):
    with limited(TPOSettings(**settings), left):
        return await Sampler(policy).draw(ASK, n, PLAIN)


async def test_a_request_is_sent_as_often_as_the_setting_says_whatever_the_client_would_do(serve):
    server = serve(AT_ONCE)
    with pytest.raises(PolicyError, match="status 503") as caught:
        await drawn(model_of(server, max_retries=9), max_retries=3)
    assert len(server.requests) == caught.value.usage["requests"] == 4


@pytest.mark.parametrize(("own", "tries"), [({"max_retries": 3}, 4), ({"max_retries": None}, 3)])
async def test_what_was_set_on_the_model_counts_where_the_setting_is_not_named(serve, own, tries):
    server = serve(AT_ONCE)
    with pytest.raises(PolicyError):
        await drawn(model_of(server, **own))
    assert len(server.requests) == tries


@pytest.mark.parametrize(
    "fault",
    ["half_json", "html", "empty_body", "sse", "invalid_utf8", "null_choices", "error_429", "429", "502", "cut_off"],
)
async def test_what_may_pass_is_tried_again_and_nothing_is_learned_from_it(serve, fault):
    server = serve(script=[fault])
    draw = await drawn(model_of(server), 3, max_retries=1)
    assert (len(draw.completions), draw.usage["requests"], server.asked_n) == (3, 2, [3, 3])


async def test_with_a_response_format_a_filter_loses_a_whole_request_which_is_sent_again(serve):
    server = serve(script=["content_filter"])
    sampler = Sampler(model_of(server).bind(response_format={"type": "json_object"}))
    with limited(TPOSettings(max_retries=1)):
        draw = await sampler.draw(ASK, 3, PLAIN)
    assert (len(draw.completions), server.asked_n) == (3, [3, 3])


@pytest.mark.parametrize("fault", ["400", "401", "404"])
async def test_what_can_not_pass_is_not_tried_again(serve, fault):
    server = serve(fault)
    with pytest.raises(PolicyError):
        await drawn(model_of(server), max_retries=2)
    assert len(server.requests) == 1


async def test_tries_keep_to_the_budget_of_requests(serve):
    server = serve(AT_ONCE)
    with limited(TPOSettings(max_retries=9)), pytest.raises(PolicyError):
        await Sampler(model_of(server)).draw(ASK, 1, PLAIN, most_requests=3)
    assert len(server.requests) == 3


async def test_a_hang_ends_and_is_tried_again(serve):
    server = serve(script=["hang"])
    draw = await drawn(model_of(server), timeout=1, max_retries=1)
    assert draw.completions[0].text == "text 0"
    assert server.disconnected == 1


async def test_an_answer_that_trickles_in_for_ever_ends(serve):
    server = serve("trickle")
    with pytest.raises(PolicyError, match=r"no answer within 0\.3 s"):
        await drawn(model_of(server), timeout=0.3, max_retries=0)


@pytest.mark.parametrize(("own", "setting"), [(0.2, {}), (0.2, {"timeout": 50}), (50, {"timeout": 0.2})])
async def test_the_smaller_timeout_counts(serve, own, setting):
    began = time.monotonic()
    with pytest.raises(PolicyError, match=r"no answer within 0\.2 s|timed out"):
        await drawn(model_of(serve("hang"), timeout=own), **setting, max_retries=0)
    assert time.monotonic() - began < 5


async def test_the_end_of_the_run_keeps_the_completions_that_are_there(serve):
    server = serve(most_n=1)
    sampler = Sampler(model_of(server))
    await sampler.draw(ASK, 2, PLAIN)  # finds out that the server takes n=1 alone
    server.script[:] = [None, "hang"]
    with limited(TPOSettings(budget_seconds=0.5), 0.5):
        draw = await sampler.draw(ASK, 2, PLAIN)
    assert len(draw.completions) == 1
    assert [type(error) for error in draw.errors] == [BudgetError]


async def test_where_there_is_none_at_the_end_of_the_run_it_says_so_and_what_was_spent(serve):
    server = serve("hang")
    with pytest.raises(BudgetError, match=r"time of the run is over \(budget_seconds=0\.2\)") as caught:
        await drawn(model_of(server), left=0.2, budget_seconds=0.2)
    assert caught.value.usage["requests"] == 1


async def test_a_disconnect_before_the_first_byte_uses_up_no_retry(serve):
    server = serve(script=["disconnect"] * 3)
    draw = await drawn(model_of(server), max_retries=0)
    assert (draw.completions[0].text, len(server.requests), draw.usage["requests"]) == ("text 0", 4, 4)
    assert len({request.peer for request in server.requests}) == 4


async def test_a_server_that_always_disconnects_is_called_one(serve):
    server = serve("disconnect")
    with pytest.raises(PolicyError, match="closed the connection"):
        await drawn(model_of(server), max_retries=1)
    assert len(server.requests) == 5


async def test_an_answer_that_is_cut_off_uses_up_a_retry(serve):
    server = serve("cut_off")
    with pytest.raises(PolicyError, match="closed the connection"):
        await drawn(model_of(server), max_retries=0)
    assert len(server.requests) == 1


async def test_a_wait_that_the_server_asks_for_is_kept_to(serve):
    server = serve(script=["429_retry_after"])
    began = time.monotonic()
    await drawn(model_of(server), max_retries=1)
    assert 1 <= time.monotonic() - began < 3


async def test_fallbacks_and_retries_of_a_policy_are_its_own(serve):
    bad, good = serve(AT_ONCE), serve()
    policy = model_of(bad).with_fallbacks([model_of(good)])
    draw = await drawn(policy, max_retries=1)
    assert (len(bad.requests), len(good.requests), draw.usage["requests"]) == (2, 1, 3)
    retried = serve(AT_ONCE)
    with pytest.raises(PolicyError):
        await drawn(model_of(retried).with_retry(stop_after_attempt=2, wait_exponential_jitter=False), max_retries=5)
    assert len(retried.requests) == 2


async def test_a_fallback_is_asked_after_a_hang(serve):
    policy = model_of(serve("hang")).with_fallbacks([model_of(serve())])
    draw = await drawn(policy, max_retries=0, timeout=1)
    assert draw.completions[0].text == "text 0"


class CountingModel(ScriptedChatModel):
    """Its client is made when it is first needed, with the number of retries that the model has then."""

    max_retries: int = 6
    numbers: list[int] = Field(default_factory=list)

    @cached_property
    def client(self) -> int:
        return self.max_retries

    async def _agenerate(self, *arguments, **options):
        self.numbers.append(self.client)
        return await super()._agenerate(*arguments, **options)


class MadeBefore(CountingModel):
    """Its client is made with the model."""

    async_client: Any = None

    def model_post_init(self, context):
        super().model_post_init(context)
        self.async_client = SimpleNamespace(max_retries=self.max_retries)


UNREADABLE = ValueError("Expecting value: line 1 column 1 (char 0)")


@pytest.mark.parametrize("failure", [ConnectionError("gone"), UNREADABLE])
async def test_the_client_of_any_model_sends_once_where_that_can_be_said(failure):
    model = CountingModel([failure, "fine"])
    assert model.client == 6
    assert (await drawn(model, max_retries=1)).completions[0].text == "fine"
    assert (model.numbers, model.max_retries) == ([0, 0], 6)


async def test_what_a_client_tries_again_by_itself_is_not_tried_again():
    model = MadeBefore([UNREADABLE, ConnectionError("gone"), "fine"])
    with pytest.raises(PolicyError, match="gone"):
        await drawn(model, max_retries=5)
    assert len(model.numbers) == 2


async def test_a_judge_keeps_to_the_same_limits_wherever_it_is(serve):
    server = serve(AT_ONCE)
    reward = WeightedSum({"judge": JudgeReward(model_of(server))})
    with limited(TPOSettings(max_retries=1)), pytest.raises(RewardError, match="status 503"):
        await reward.score(ASK, ["x"])
    assert len(server.requests) == 2
    with limited(TPOSettings(timeout=0.2, max_retries=0)), pytest.raises(RewardError, match=r"no answer within 0\.2 s"):
        await JudgeReward(model_of(serve("hang"))).score(ASK, ["x"])
