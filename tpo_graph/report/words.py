"""What the short codes of a run mean, in words."""

from collections.abc import Mapping

FAILURES: Mapping[str, str] = {
    "request_failed": "request failed",
    "empty": "empty response",
    "no_tags": "no opening tag",
    "truncated": "cut off at the token limit",
    "tool_calls": "a tool call and no text",
    "thinking_only": "reasoning and no answer",
    "refused": "refused",
    "filtered": "cut by a filter",
    "out_of_time": "the time was over",
    "invalid": "not valid for the schema",
    "not_finite": "reward is not a finite number",
    "scoring_failed": "scoring failed",
}
STOP_REASONS: Mapping[str, str] = {
    "depth": "all steps are done",
    "converged": "the best reward no longer rises",
    "target": "the target or the highest possible reward is reached",
    "budget": "the budget is used up, or another step would not fit it",
    "updates_failed": "no revision could be used; the best answer so far is kept",
    "policy_failed": "the policy failed; the best answer so far is kept",
    "reward_failed": "the reward model failed; the best answer so far is kept",
    "bon": "best of N takes no steps",
    "person": "a person stopped it",
}


def format_reward(value: float) -> str:
    """A reward with its sign, in a width that suits a column.

    Examples:
        >>> format_reward(0.5), format_reward(-12.25), format_reward(1234567.0), format_reward(0.00012)
        ('+0.500', '-12.250', '+1.23e+06', '+0.00012')
    """
    return f"{value:+.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:+.3g}"
