from tests.fresh_process import run_script


def test_a_script_without_a_main_guard_ends_clean():
    """Children are started again and again by scripts that people write without `if __name__ == "__main__"`."""
    result = run_script(
        """
        import asyncio
        from tpo_graph.rewards.verifiers import RegexVerifier
        # watch
        print(asyncio.run(RegexVerifier("a+").score([], ["a", "b"])))
        """,
        stuck_after=20,
        flags=("-X", "dev", "-W", "error"),
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "[1.0, 0.0]\n", "")


def test_a_forked_process_starts_children_of_its_own():
    result = run_script(
        """
        import asyncio, os
        from tpo_graph.rewards.verifiers import RegexVerifier
        verifier = RegexVerifier("a+")
        # watch
        assert asyncio.run(verifier.score([], ["a"])) == [1.0]
        child = os.fork()
        assert asyncio.run(verifier.score([], ["b", "a"])) == [0.0, 1.0]
        if child:
            assert os.waitpid(child, 0)[1] == 0
            print("both")
        """,
        stuck_after=20,
    )
    assert (result.returncode, result.stdout) == (0, "both\n"), result.stderr
