"""Runs in processes of their own: interrupted, forked, nested in one another, and ending without a word."""

import pytest

from tests.fresh_process import run_script

pytestmark = pytest.mark.subprocess


def test_wrapped_policies_work_in_one_event_loop_after_another(chat_server):
    script = f"""
        import asyncio, gc
        from langchain_openai import ChatOpenAI
        from tests.tpo_script import number_reward
        from tpo_graph import create_tpo_graph

        model = ChatOpenAI(model="m", base_url={chat_server().url!r}, api_key="k", max_retries=0)
        for wrapped in (model.with_retry(stop_after_attempt=2), model.with_fallbacks([model])):
            tpo = create_tpo_graph(wrapped, number_reward())
            for _ in range(2):
                result = asyncio.run(tpo.ainvoke({{"query": "q"}}))
                print(result["stop_reason"], len(result["cache"]), len(result["failures"]))
            print(tpo.invoke({{"query": "q"}})["stop_reason"])
            gc.collect()
    """
    ended = run_script(script, flags=["-W", "always::ResourceWarning"])
    assert (ended.stdout, ended.stderr) == ("depth 15 0\ndepth 15 0\ndepth\n" * 2, "")


NESTED_STREAM = """
    from tests.tpo_script import number_reward, scripted_policy
    from tpo_graph import create_tpo_graph

    # watch
    inner = create_tpo_graph(scripted_policy(), number_reward())

    async def loss(state):
        for _, chunk in inner.stream({"query": "q"}, context={"mode": "bon"}, stream_mode=["messages", "values"]):
            pass
        return {"loss": chunk["answer"], "gradient": ""}

    outer = create_tpo_graph(scripted_policy(), number_reward(), nodes={"loss": loss})
    print(outer.invoke({"query": "q"}, context={"depth": 1})["trajectory"][-1]["loss"])
"""


def test_a_sync_stream_of_messages_inside_a_node_of_a_sync_run():
    ended = run_script(NESTED_STREAM)
    assert (ended.stdout, ended.returncode) == ("cand 4\n", 0), ended.stderr


INTERRUPTED = """
    import os, signal, threading, time
    from langchain_openai import ChatOpenAI
    from tests.servers import ChatServer
    from tests.tpo_script import number_reward
    from tpo_graph import create_tpo_graph

    # watch
    def interrupt(asked):
        while len(server.requests) < asked:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    with ChatServer(always="hang") as server:
        model = ChatOpenAI(model="m", base_url=server.url, api_key="k", max_retries=0)
        tpo = create_tpo_graph(model, number_reward())
        for number, call in enumerate([CALLS], start=1):
            threading.Thread(target=interrupt, args=(number,), daemon=True).start()
            try:
                call()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            for _ in range(300):
                if server.disconnected == number:
                    break
                time.sleep(0.01)
            print("disconnected", server.disconnected, flush=True)
"""


def test_ctrl_c_ends_a_sync_run_and_its_request():
    calls = ['tpo.invoke({"query": "q"})', 'list(tpo.stream({"query": "q"}, stream_mode="updates"))']
    ended = run_script(INTERRUPTED.replace("CALLS", ", ".join(f"lambda: {call}" for call in calls)))
    assert ended.stdout == "interrupted\ndisconnected 1\ninterrupted\ndisconnected 2\n", ended.stderr


def test_a_plain_script_ends_without_a_word(chat_server):
    server = chat_server()
    script = f"""
        import asyncio
        from langchain_openai import ChatOpenAI
        from tests.tpo_script import number_reward
        from tpo_graph import create_tpo_graph

        tpo = create_tpo_graph(ChatOpenAI(model="m", base_url={server.url!r}, api_key="k"), number_reward())
        tpo.invoke({{"query": "q"}})
        asyncio.run(tpo.ainvoke({{"query": "q"}}))
        print(tpo.invoke({{"query": "q"}})["stop_reason"])
    """
    ended = run_script(script, flags=["-W", "always::ResourceWarning"])
    assert (ended.stdout, ended.stderr, ended.returncode) == ("depth\n", "", 0)


def test_a_forked_child_can_run_the_graph():
    script = """
        import os
        from tests.tpo_script import number_reward, scripted_policy
        from tpo_graph import create_tpo_graph

        # watch
        tpo = create_tpo_graph(scripted_policy(), number_reward())
        tpo.invoke({"query": "q"})
        child = os.fork()
        if child == 0:
            os._exit(0 if tpo.invoke({"query": "q"})["stop_reason"] == "depth" else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_script(script).stdout == "0\n"


def test_a_reward_model_that_exits_does_not_stop_later_runs():
    script = """
        from tests.tpo_script import number_reward, scripted_policy
        from tpo_graph import create_tpo_graph

        # watch
        class Exits:
            async def score(self, messages, responses):
                raise SystemExit(3)

        try:
            create_tpo_graph(scripted_policy(), Exits()).invoke({"query": "q"})
        except SystemExit:
            print("exit")
        print(create_tpo_graph(scripted_policy(), number_reward()).invoke({"query": "q"})["stop_reason"])
    """
    assert run_script(script).stdout == "exit\ndepth\n"
