"""A job from claim to finish, with the real steps."""

from runner import pipeline


def test_a_script_runs_again_in_the_jobs_folder_and_every_step_is_told(play):
    """A recorded script is restored, run with its arguments in the job's folder, and its end reported with evidence."""
    (play.repository / "train.py").write_text("import os, sys, helper\nprint(sys.argv, os.getcwd(), helper.__file__, sys.executable)\n")
    (play.repository / "helper.py").write_text("")
    recipe = play.recipe(arguments=["--out", str(play.repository / "out")])
    play.repository.rename(play.tmp_path / "away")
    ended = play(recipe)
    assert ended.failure is None, (ended.failure, ended.log)
    assert ended.state == "finished"
    assert ended.steps == dict.fromkeys(["checkout", "environment", "data", "execute", "evidence"], "done")
    assert f"['train.py', '--out', '{ended.folder}/source/out'] {ended.folder}/source {ended.folder}/source/helper.py" in ended.output
    assert str(play.home / "environments") in ended.output
    assert ended.evidence["exit_code"] == 0
    assert ended.evidence["source"]["equal"]


def test_a_wake_up_delivered_twice_runs_once(play):
    """The second message finds the job taken and does nothing."""
    (play.repository / "train.py").write_text("print('once')\n")
    job = play.order(play.recipe())
    assert pipeline.perform(job, settings=play.settings()) == "finished"
    assert pipeline.perform(job, settings=play.settings()) == "nothing"
    assert [path for path, _ in play.tracker.said].count(f"jobs/{job}/finish") == 1


def test_a_failing_program_is_told_with_its_status_and_last_words(play):
    """Exit status 3 comes back as program_failed with the tail of the output, and evidence all the same."""
    (play.repository / "train.py").write_text("import sys; print('last words'); sys.exit(3)\n")
    ended = play(play.recipe())
    assert ended.state == "failed"
    assert ended.failure["code"] == "program_failed"
    assert ended.failure["exit_code"] == 3
    assert "last words" in ended.failure["output"]
    assert ended.evidence["exit_code"] == 3
    assert ended.steps["evidence"] == "done"


def test_the_program_sees_nothing_of_the_workers_environment(play, monkeypatch):
    """Neither tokens nor settings of the worker reach the program; recorded variables do, unset ones do not."""
    monkeypatch.setenv("ENCORE_WORKER_TOKEN", "secret-of-the-worker")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-worker")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    (play.repository / "train.py").write_text("import os\nfor k, v in sorted(os.environ.items()): print(k, v)\n")
    recipe = play.recipe(
        command={
            "env": {"DATA_DIR": str(play.repository / "data"), "RANK": "0", "ENCORE_MODE": "offline", "ENCORE_OTHER": "1"},
            "unset": ["OMP_NUM_THREADS"],
        }
    )
    ended = play(recipe)
    assert "ENCORE_MODE online" in ended.output
    assert "ENCORE_OTHER" not in ended.output
    assert "secret-of-the-worker" not in ended.output
    assert "key-" + ended.job not in ended.output
    assert "OMP_NUM_THREADS" not in ended.output
    assert "\nRANK" not in ended.output
    assert f"DATA_DIR {ended.folder}/source/data" in ended.output
    assert f"HOME {ended.folder}/home" in ended.output
