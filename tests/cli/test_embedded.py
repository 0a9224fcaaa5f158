"""The command with nothing but a question: embedded policy, demonstration reward, no key, no network."""

import json

import pytest

from tests.fresh_process import run_script


@pytest.mark.embedded
def test_a_question_alone_is_answered_and_nothing_leaves_the_machine():
    done = run_script(
        """
        import sys

        here = (None, "127.0.0.1", "::1", "localhost")
        outside = []
        def watch(event, arguments):
            if event == "socket.connect" and isinstance(arguments[1], tuple):
                outside.extend(host for host in arguments[1][:1] if host not in here)
            if event == "socket.getaddrinfo":
                outside.extend(host for host in arguments[:1] if host not in here)
        sys.addaudithook(watch)

        from tpo_graph.cli.app import execute
        flags = ["-n", "2", "--depth", "1", "--json", "--seed", "1"]
        for phase in ("sample", "loss", "gradient", "update"):
            flags += [f"--{phase}-max-new-tokens", "24"]
        code = execute(["run", "Why does warmth make you feel tired?", *flags])
        print(code, outside, file=sys.stderr)
        """
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    result = json.loads(done.stdout)
    assert result["answer"]
    assert result["prompts"] == "base"
    assert result["models"] == {"policy": "local", "reward model": "local"}
    best = [record["best_reward"] for record in result["trajectory"]]
    assert best == sorted(best)
