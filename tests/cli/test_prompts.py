"""`tpo-graph prompts`: list, show, copy and check."""

from pathlib import Path

from tpo_graph.prompts.pack import PromptPack, available_packs, pack_folder


def test_list(tpo):
    ended = tpo("prompts", "list")
    assert ended.code == 0
    listed = {line.split()[0]: line for line in ended.out.splitlines()}
    assert list(listed) == available_packs()
    assert listed["tpo"].endswith(PromptPack.load("tpo").description)


def test_show_one_file_as_it_is(tpo):
    text = (pack_folder("tpo") / "loss.toml").read_bytes().decode()
    assert tpo("prompts", "show", "tpo", "loss").out == text
    assert tpo("prompts", "show", "tpo", "loss.toml").out == text


def test_show_all_files(tpo):
    out = tpo("prompts", "show", "tpo").out
    for file in pack_folder("tpo").glob("*.toml"):
        assert f"# ---- {file.name} ----\n{file.read_text()}" in out
    assert out.startswith("# ---- pack.toml")


def test_show_what_is_not_there(tpo):
    ended = tpo("prompts", "show", "tpo", "los")
    assert ended.code == 2
    assert "it has: pack, critique, critique_revision, gradient, loss" in ended.err


def test_copy_then_edit_then_check(tpo, tmp_path):
    folder = tmp_path / "new" / "mine"
    ended = tpo("prompts", "copy", "tpo", str(folder))
    assert (ended.code, ended.out) == (0, f"{folder}\n")
    assert f"--prompts {folder}" in ended.err
    copied = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert copied == {file.name: file.read_bytes() for file in pack_folder("tpo").iterdir() if file.is_file()}
    checked = tpo("prompts", "check", str(folder))
    assert checked.code == 0
    assert [line.split(":")[1] for line in checked.out.splitlines()[:3]] == [" ok"] * 3


def test_a_copy_that_is_called_like_a_pack_of_ours_is_told_by_a_path_that_means_it(tpo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = tpo("prompts", "copy", "tpo", "tpo")
    assert ended.out == "./tpo\n"
    assert "prompts check ./tpo" in ended.err
    (tmp_path / "tpo" / "loss.toml").unlink()
    assert "no loss.toml" in tpo("prompts", "check", "./tpo").err


def test_copy_overwrites_nothing(tpo, tmp_path):
    ended = tpo("prompts", "copy", "tpo", str(tmp_path))
    assert ended.code == 2
    assert "is there already" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_copy_where_nothing_can_be_written(tpo, tmp_path):
    (tmp_path / "file").write_text("")
    ended = tpo("prompts", "copy", "tpo", str(tmp_path / "file" / "below"))
    assert ended.code == 2
    assert "Traceback" not in ended.err


def pack_for_tpo_only(folder: Path) -> Path:
    """A pack whose loss shows the worst response, with nothing for mode `revision`."""
    folder.mkdir()
    (folder / "pack.toml").write_text('open_tag = "<<"\nclose_tag = ">>"\n')
    (folder / "loss.toml").write_text('user = "$query $best $worst"\n')
    (folder / "gradient.toml").write_text('user = "$loss"\n')
    (folder / "update.toml").write_text('user = "$gradient $open_tag $close_tag"\n')
    return folder


def test_check_tells_which_modes_a_pack_can_run(tpo, tmp_path):
    folder = str(pack_for_tpo_only(tmp_path / "mine"))
    ended = tpo("prompts", "check", folder)
    lines = ended.out.splitlines()
    assert ended.code == 0
    assert lines[0] == "mode tpo: ok"
    assert lines[1].startswith("mode revision: Prompt pack 'mine' can't run")
    assert lines[3] == "preference: not used"
    assert tpo("prompts", "check", folder, "--mode", "tpo").code == 0
    assert tpo("prompts", "check", folder, "--mode", "revision").code == 2


def test_check_of_a_pack_that_is_not_complete(tpo, tmp_path):
    folder = pack_for_tpo_only(tmp_path / "mine")
    (folder / "update.toml").unlink()
    ended = tpo("prompts", "check", str(folder))
    assert ended.code == 2
    assert "update" in ended.err.splitlines()[0]
