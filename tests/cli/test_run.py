"""`tpo-graph run`: a question in, the answer out, and what happens when it goes wrong."""

import io
import json
import re
import sys
from pathlib import Path

import pytest

import tpo_graph
from tests.cli.conftest import at, run_process
from tests.fresh_process import run_script
from tests.tpo_script import FailsAtACost, phase_of, server_reply
from tpo_graph.rewards.load import SCHEMES

QUESTION = "Why is the sky blue?"


@pytest.mark.subprocess
def test_the_process_prints_the_answer_on_stdout_and_progress_without_control_codes_on_stderr(chat_server):
    ended = run_process("run", QUESTION, *at(chat_server()), FORCE_COLOR="1")
    assert (ended.code, ended.out) == (0, "rev 18\n")
    assert ended.err.startswith("tpo-graph  policy server:") and "depth: all steps are done" in ended.err
    assert not {"\x1b", "\r"} & set(ended.err)


def test_json_is_the_whole_result(chat_server, tpo):
    server = chat_server()
    ended = tpo("run", QUESTION, *at(server), "--json", "--depth", "1", "-n", "3", "--system", "Be brief.")
    assert ended.code == 0
    result = json.loads(ended.out)
    assert result["answer"] == "rev 7"
    assert result["stop_reason"] == "depth"
    assert (
        result["best"].items() >= {"id": "1-2", "step": 1, "text": "rev 7", "truncated": False, "reward": 7.0}.items()
    )
    assert result["worst"]["text"] == "cand 0"
    assert [candidate["reward"] for candidate in result["cache"]] == [0.0, 1.0, 2.0, 5.0, 6.0, 7.0]
    assert [record["step"] for record in result["trajectory"]] == [0, 1]
    assert result["trajectory"][1]["loss"] == "the loss"
    assert result["usage"]["sample"]["requests"] == 1
    assert result["failures"] == result["unscored"] == []
    assert result["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "rev 7"},
    ]
    assert (result["settings"]["n"], result["settings"]["depth"]) == (3, 1)
    assert result["models"] == {"policy": f"server:{server.url}#scripted", "reward model": "number"}
    assert (result["prompts"], result["variant"]) == ("tpo", None)
    assert (result["error"], result["version"]) == (None, tpo_graph.__version__)
    assert result["interrupted"] is False
    roles = [(message["role"], message["content"]) for message in server.bodies[0]["messages"]]
    assert roles == [("system", "Be brief."), ("user", QUESTION)]


def test_a_critic_writes_loss_and_gradient(chat_server, tpo):
    policy, critic = chat_server(), chat_server()
    ended = tpo("run", QUESTION, *at(policy), "--critic", f"server:{critic.url}#scripted", "--depth", "1")
    assert ended.code == 0
    assert [phase_of(body["messages"][-1]["content"]) for body in policy.bodies] == ["sample", "update"]
    assert [phase_of(body["messages"][-1]["content"]) for body in critic.bodies] == ["loss", "gradient"]
    assert "✓ critic  " in ended.err


def test_a_variant_asks_for_loss_and_gradient_at_once(chat_server, tpo):
    server = chat_server()
    ended = tpo("run", QUESTION, *at(server), "--depth", "1", "--variant", "fused-critique", "--json")
    assert json.loads(ended.out)["variant"] == "fused-critique"
    assert [phase_of(request.text) for request in server.requests] == ["sample", "critique", "update"]


def test_a_dash_reads_standard_input(chat_server, tpo, monkeypatch):
    server = chat_server()
    monkeypatch.setattr(sys, "stdin", io.StringIO("  Wie grün\nist das? \n"))
    assert tpo("run", "-", *at(server), "--mode", "bon").code == 0
    assert server.bodies[0]["messages"][-1]["content"] == "Wie grün\nist das?"


@pytest.mark.parametrize(
    "arguments", [["-"], ["caf\udce9"], ["q", "--system", "caf\udce9"], ["q", "--preference", "caf\udce9"]]
)
def test_text_that_is_not_unicode_is_refused_before_a_model_is_loaded(tpo, monkeypatch, arguments):
    monkeypatch.setattr(sys, "stdin", io.StringIO("caf\udce9?"))
    ended = tpo("run", "--policy", "server:nowhere", *arguments)
    assert ended.code == 2
    assert "is not valid UTF-8 after 'caf'" in ended.error.message
    assert "tpo-graph  " not in ended.err


def test_quiet_shows_nothing_but_the_answer(chat_server, tpo):
    ended = tpo("run", QUESTION, *at(chat_server()), "-q", "--mode", "bon")
    assert (ended.code, ended.out, ended.err) == (0, "cand 4\n", "")


def test_a_prompt_pack_of_ones_own(chat_server, tpo, tmp_path):
    folder = tmp_path / "mine"
    assert tpo("prompts", "copy", "tpo", str(folder)).code == 0
    loss = folder / "loss.toml"
    loss.write_text(loss.read_text().replace("Find out why.", "Find out why, in rhyme."))
    server = chat_server()
    ended = tpo("run", QUESTION, *at(server), "--prompts", str(folder), "--depth", "1", "--json")
    assert "in rhyme" in server.requests[1].text
    assert json.loads(ended.out)["prompts"] == "mine"


def test_text_of_the_policy_is_neither_markup_nor_control_codes_in_progress_and_json(chat_server, tpo):
    hostile = "\x1b[2J[red]bold[/red] \x07 \x9b31m [link=x] 3\r\nnext 4"
    server = chat_server(answer=lambda request, number: hostile)
    ended = tpo("run", QUESTION, *at(server), "--depth", "1")
    assert ended.out == hostile + "\n"  # a pipe gets the exact answer, a terminal does not
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.err)
    raw = tpo("run", QUESTION, *at(server), "--depth", "1", "--json")
    assert json.loads(raw.out)["answer"] == hostile
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", raw.out)


@pytest.mark.subprocess
def test_the_first_line_comes_before_anything_heavy_is_imported(chat_server):
    done = run_script(
        f"""
        import sys
        class Watched:
            heavy = None
            encoding = "utf-8"
            isatty = staticmethod(lambda: False)
            flush = staticmethod(lambda: None)
            def write(self, text):
                if self.heavy is None:
                    self.heavy = {{"torch", "langgraph", "langchain_core", "openai"}} & sys.modules.keys()
        sys.stderr = Watched()
        from tpo_graph.cli.commands import execute
        execute(["run", "q", "--policy", "server:{chat_server().url}#scripted", "--reward", "none"])
        print(sys.stderr.heavy)
        """
    )
    assert done.stdout == "set()\n"


@pytest.mark.subprocess
@pytest.mark.embedded
def test_the_embedded_models_answer_and_nothing_leaves_the_machine(embedded_model):
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

        from tpo_graph.cli.commands import execute
        flags = ["--policy", "local:135m", "-n", "2", "--depth", "1", "--json", "--seed", "1"]
        for phase in ("sample", "loss", "gradient", "update"):
            flags += [f"--{phase}-max-new-tokens", "24"]
        code = execute(["run", "Why does warmth make you feel tired?", *flags])
        print(code, outside, file=sys.stderr)
        """
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
    result = json.loads(done.stdout)
    assert result["answer"]
    assert result["prompts"] == "small"
    assert result["models"] == {"policy": embedded_model, "reward model": "local"}
    best = [record["best_reward"] for record in result["trajectory"]]
    assert best == sorted(best)
    assert done.stderr.count("  ! the reward model `local` is a small demonstration") == 1


class TestWarnings:
    def test_signs_of_overoptimization(self, chat_server, tpo):
        server = chat_server(answer=lambda request, number: server_reply(request, number % 2))
        ended = tpo("run", QUESTION, *at(server), "--depth", "1", "--json")
        assert "duplicate_candidates" in [warning["kind"] for warning in json.loads(ended.out)["warnings"]]
        assert "  ! 6 of 10 candidates repeat an earlier one" in ended.err

    def test_a_second_reward_watches(self, chat_server, tpo, tmp_path):
        (tmp_path / "second.py").write_text("def f(response):\n    return -float(response.split()[-1])\n")
        name = f"python:{tmp_path / 'second.py'}:f"
        ended = tpo("run", QUESTION, *at(chat_server()), "--depth", "1", "--second-reward", name, "--json")
        assert ended.code == 0, ended.err
        result = json.loads(ended.out)
        assert result["models"]["second reward model"] == name
        assert [warning["kind"] for warning in result["warnings"]] == ["second_scorer_falls"]
        assert ended.err.count("  ! ") == 1
        assert "while the second scorer's fell" in " ".join(ended.err.split())


class TestRefused:
    """What is refused before anything is paid for."""

    @pytest.mark.parametrize(
        ("arguments", "message", "hint"),
        [
            (["--policy", "openai:gpt-4o-mini", "--reward", "number"], "openai:gpt-4o-mini.*OPENAI_API_KEY", ""),
            (["--policy", "vllm:nowhere", "--reward", "number"], "vllm:nowhere", ""),
            (["--policy", "server:http://127.0.0.1:9/v1#m", "--reward", "nunber"], "'nunber'", "number"),
            (["--reward", "person", "--second-reward", "local"], "--second-reward watches a reward model", ""),
            (["--prompts", "nope"], "'nope'", "prompts"),
            (["--variant", "nope"], "'nope'; allowed: fused-critique", ""),
            (["-n", "many"], "n='many'", ""),
            (["--depth", "none"], "depth='none'", ""),
            (["--config", "nowhere.toml"], "nowhere.toml", ""),
        ],
    )
    def test_a_bad_option(self, tpo, arguments, message, hint):
        error = tpo("run", QUESTION, *arguments).error
        assert error.code == 2
        assert re.search(message, error.message)
        assert hint in error.hint

    @pytest.mark.parametrize("question", ["", "  \n "])
    def test_an_empty_question(self, tpo, question):
        error = tpo("run", question).error
        assert error.code == 2
        assert "empty" in error.message and "quotes" in error.hint

    @pytest.mark.parametrize(
        ("arguments", "file", "problem"),
        [
            (["--config"], "/dev/zero", "has more than 16 MiB, the most that is read"),
            (["--config"], "/tmp", "can't be read: Is a directory"),
            (["--config"], "deep.toml", "is nested too deep"),
            (["--reward"], "deep.toml", "is nested too deep"),
            (["--prompts"], ".", "is nested too deep"),  # pack.toml
            (["--reward"], "json_schema:deep.json", "is nested too deep"),
            (["--reward"], "json_schema:/dev/zero", "has more than 16 MiB, the most that is read"),
        ],
    )
    def test_a_file_that_has_no_end_or_no_bottom(self, tpo, monkeypatch, tmp_path, arguments, file, problem):
        monkeypatch.chdir(tmp_path)
        for name in ("deep.toml", "pack.toml"):
            (tmp_path / name).write_text("n = " + 100_000 * "[")
        (tmp_path / "deep.json").write_text(100_000 * "[")
        error = tpo("run", QUESTION, "--policy", "server:http://127.0.0.1:9/v1#m", *arguments, file).error
        assert error.code == 2 and problem in error.message

    def test_standard_input_that_has_no_end(self, tpo, monkeypatch):
        with Path("/dev/zero").open() as endless:
            monkeypatch.setattr(sys, "stdin", endless)
            error = tpo("run", "-").error
        assert error.code == 2 and "has more than 16 Mi characters, the most that is read" in error.message

    def test_stop_texts_nested_too_deep(self, tpo, monkeypatch):
        monkeypatch.setenv("TPO_SAMPLE_STOP", 100_000 * "[")
        error = tpo("run", QUESTION).error
        assert error.code == 2 and error.message.startswith("Setting TPO_SAMPLE_STOP='[[[")

    def test_errors_are_in_the_json_too(self, tpo):
        ended = tpo("run", QUESTION, "--n", "0", "--json")
        assert ended.code == 2
        error = json.loads(ended.out)["error"]
        assert (error["kind"], error["exit_code"]) == ("ConfigurationError", 2)
        assert "n='0'" in error["message"]

    @pytest.mark.subprocess
    def test_the_local_extra_is_missing(self):
        script = (
            "import sys; sys.modules['xllamacpp'] = None; sys.argv = ['tpo-graph', 'run', 'q', '--policy', 'local']\n"
            "from tpo_graph.cli.app import main; main()"
        )
        done = run_script(script)
        assert done.returncode == 2
        assert "\nerror: " in done.stderr and "pip install '.[local]'" in done.stderr and "Traceback" not in done.stderr


class TestSave:
    """`--save`: the document of `--json`, whole or not at all."""

    @pytest.fixture
    def file(self, tmp_path):
        return tmp_path / "run.json"

    def test_it_is_what_json_prints(self, chat_server, tpo, file):
        ended = tpo("run", QUESTION, *at(chat_server()), "--json", "--save", str(file))
        assert ended.code == 0
        assert json.loads(file.read_text("utf-8")) == json.loads(ended.out)
        assert ended.err.endswith(f"\nsaved; to see it again: tpo-graph replay {file}\n")
        assert [path.name for path in file.parent.iterdir()] == ["run.json"]

    def test_it_has_the_phases_in_their_order(self, chat_server, tpo, file):
        tpo("run", QUESTION, *at(chat_server()), "-q", "--depth", "1", "--save", str(file))
        phases = json.loads(file.read_text())["phases"]
        steps = [(phase["phase"], phase["step"]) for phase in phases]
        begin = [("sample", 0), ("score", 0), ("select", 0)]
        assert steps == begin + [(name, 1) for name in ("loss", "gradient", "update", "score", "select")]
        assert all(phase["seconds"] >= 0 for phase in phases)

    def test_a_run_that_failed_after_candidates_were_scored(self, chat_server, tpo, file):
        server = chat_server(faults=[None, None, "401"])
        ended = tpo("run", QUESTION, *at(server), "--on-failure", "raise", "--save", str(file))
        saved = json.loads(file.read_text())
        assert (ended.code, saved["error"]["kind"], saved["answer"]) == (3, "PolicyError", "cand 4")
        assert (saved["loss"], saved["trajectory"][-1]["step"]) == ("the loss", 0)  # paid for, and not yet a step's

    def test_candidates_that_could_not_be_scored(self, chat_server, tpo, file):
        assert tpo("run", QUESTION, *at(chat_server(), reward="broken"), "--save", str(file)).code == 4
        assert len(json.loads(file.read_text())["unscored"]) == 5

    def test_a_run_that_brought_nothing_leaves_the_file_as_it_was(self, chat_server, tpo, file):
        file.write_text("earlier")
        assert tpo("run", QUESTION, *at(chat_server(always="401")), "--save", str(file)).code == 3
        assert file.read_text() == "earlier"

    def test_who_may_read_the_file_stays_as_it_was(self, chat_server, tpo, file):
        file.touch(mode=0o600)
        assert tpo("run", QUESTION, *at(chat_server()), "--mode", "bon", "--save", str(file)).code == 0
        assert file.stat().st_mode & 0o777 == 0o600 and json.loads(file.read_text())["answer"] == "cand 4"

    @pytest.mark.parametrize("place", ["nowhere/run.json", ".", "/dev/null"])
    def test_a_place_that_can_not_be_written_is_refused_before_a_model_is_loaded(self, tpo, tmp_path, place):
        ended = tpo("run", QUESTION, "--policy", "server:nowhere", "--save", str(tmp_path / place))
        assert ended.code == 2 and "--save " in ended.error.message
        assert "tpo-graph  policy" not in ended.err

    def test_a_folder_that_is_gone_at_the_end_costs_nothing(self, chat_server, tpo, tmp_path, monkeypatch):
        folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
        folder.mkdir()
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        server = chat_server(answer=lambda *asked: (folder.exists() and folder.rmdir()) or server_reply(*asked))
        ended = tpo("run", QUESTION, *at(server), "--mode", "bon", "--save", str(folder / "run.json"))
        assert (ended.code, ended.out) == (6, "cand 4\n")
        (kept,) = elsewhere.iterdir()
        assert str(kept) in ended.error.hint and json.loads(kept.read_text())["answer"] == "cand 4"


class TestFailures:
    """Runs that fail on the way: what was paid for is kept."""

    def test_no_server(self, tpo, unused_tcp_port):
        url = f"http://127.0.0.1:{unused_tcp_port}/v1"
        error = tpo("run", QUESTION, "--policy", f"server:{url}#m", "--reward", "number").error
        assert error.code == 3
        assert "refused" in error.message and "running" in error.hint
        error = tpo("run", QUESTION, "--policy", f"server:{url}", "--reward", "number").error
        assert error.code == 3
        assert url in error.message and "running" in error.hint

    def test_a_server_that_hangs(self, chat_server, tpo):
        server = chat_server(always="hang")
        error = tpo("run", QUESTION, *at(server), "--timeout", "1.5", "--max-retries", "1").error
        assert error.code == 3 and "1.5" in error.message + error.hint
        assert len(server.requests) == 2

    @pytest.mark.parametrize(
        ("fault", "message", "hint"),
        [("404", "The model does not exist", "model name"), ("401", "Incorrect API key", "API key")],
    )
    def test_a_policy_that_answers_nothing(self, chat_server, tpo, fault, message, hint):
        error = tpo("run", QUESTION, *at(chat_server(always=fault))).error
        assert error.code == 3
        assert message in error.message and hint in error.hint

    def test_candidates_that_could_not_be_scored_are_printed(self, chat_server, tpo):
        ended = tpo("run", QUESTION, *at(chat_server(), reward="broken"))
        assert ended.error.code == 4
        assert ended.error.message == "The table has no reward for 'cand 0'."
        assert ended.out == ""  # no program may take one of them for the answer
        assert "failed: 5 candidates drawn, none scored" in ended.err
        assert "candidate 0-0 (1 of 5, not scored):\ncand 0\n" in ended.err

    def test_candidates_that_could_not_be_scored_are_in_the_json(self, chat_server, tpo):
        ended = tpo("run", QUESTION, *at(chat_server(), reward="broken"), "--json", "--quiet")
        result = json.loads(ended.out)
        assert (ended.code, result["error"]["exit_code"]) == (4, 4)
        assert [candidate["text"] for candidate in result["unscored"]] == [f"cand {number}" for number in range(5)]
        assert result["answer"] is result["best"] is result["stop_reason"] is None
        assert result["error"]["kind"] == "RewardError"
        assert ended.err.startswith("error: ")

    def test_the_cost_of_a_failed_scoring_is_in_the_json(self, chat_server, tpo, monkeypatch):
        monkeypatch.setitem(SCHEMES, "costly", lambda name: FailsAtACost())
        ended = tpo("run", QUESTION, *at(chat_server(), reward="costly"), "--json")
        usage = json.loads(ended.out)["usage"]
        assert (ended.code, usage["sample"]["requests"]) == (4, 1)
        assert (usage["score"]["requests"], usage["score"]["input_tokens"]) == (2, 300)
        assert "3 requests" in ended.err

    def test_a_policy_that_fails_later_leaves_the_best_answer(self, chat_server, tpo):
        ended = tpo("run", QUESTION, *at(chat_server(faults=[None, "401", "401"])))
        assert (ended.code, ended.out) == (0, "cand 4\n")
        assert "  ✗ loss      no text" in ended.err and "    ✗ request failed: " in ended.err
        assert "policy_failed: the policy failed; the best answer so far is kept" in ended.err

    def test_a_quiet_run_that_failed_says_so(self, chat_server, tpo):
        ended = tpo("run", QUESTION, *at(chat_server(faults=[None, "401"])), "-q", "--depth", "1")
        assert (ended.code, ended.out) == (0, "cand 4\n")
        assert ended.err.startswith(
            "policy_failed: the policy failed; the best answer so far is kept: request failed: "
        )
        assert "Incorrect API key" in ended.err and ended.err.count("\n") == 1

    def test_an_answer_that_can_not_be_written_comes_before_the_failure(self, chat_server, tpo, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        server = chat_server(faults=[None, "401"])
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            ended = tpo("run", QUESTION, *at(server), "--on-failure", "raise")
        (file,) = tmp_path.iterdir()
        assert (ended.code, file.read_text()) == (3, "cand 4\n")
        assert f"The result is kept in {file}." in ended.err and "Incorrect API key" in ended.error.message

    def test_a_policy_that_fails_later_with_on_failure_raise(self, chat_server, tpo):
        ended = tpo("run", QUESTION, *at(chat_server(faults=[None, "401"])), "--on-failure", "raise")
        assert (ended.error.code, ended.out) == (3, "cand 4\n")
        assert "failed: the answer is the best candidate so far" in ended.err
        assert "401" in ended.error.message
        assert ended.error.hint == "Check the API key: the provider does not accept it."

    def test_revisions_that_could_not_be_scored(self, chat_server, tpo):
        ended = tpo("run", QUESTION, *at(chat_server(), reward="patchy"), "--on-failure", "raise", "--json")
        result = json.loads(ended.out)
        assert ended.code == 4
        assert result["answer"] == "cand 4"
        assert [candidate["id"] for candidate in result["unscored"]] == [f"1-{number}" for number in range(5)]

    def test_responses_that_can_not_be_used_have_a_line_each(self, chat_server, tpo):
        texts = {
            4: "<revised_response>never ends",
            5: "no tags at all, just a revision",
            6: "",
            7: "<revised_response>\nrev 7\n</revised_response>",
        }
        server = chat_server(
            answer=lambda request, number: texts.get(number, server_reply(request, number)),
            finish_reason=lambda text: "length" if text == texts[4] else "stop",
        )
        ended = tpo("run", QUESTION, *at(server), "-n", "2", "--depth", "1")
        assert (ended.code, ended.out) == (0, "rev 7\n")
        assert [line for line in ended.err.splitlines() if line.startswith("    ✗ ")] == [
            "    ✗ cut off at the token limit: <revised_response>never ends",
            "    ✗ no opening tag: no tags at all, just a revision",
            "    ✗ empty response",
        ]

    def test_a_step_without_a_usable_revision(self, chat_server, tpo):
        server = chat_server(answer=lambda request, number: str(min(number, 4)))
        ended = tpo("run", QUESTION, *at(server), "-n", "2", "--depth", "3")
        assert (ended.code, ended.out) == (0, "1\n")
        assert "  ✗ update    0 revisions, 4 not usable" in ended.err
        assert "    ✗ (4 times) no opening tag: 4" in ended.err  # equal failures share a line
        assert "updates_failed: no revision could be used; the best answer so far is kept" in ended.err
