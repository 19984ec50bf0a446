"""Every command does what it says and can be read by programs."""

from __future__ import annotations

import json

import pytest
from tiny import StopAfter, Stopped, start, tiny

from fedadapt.adapters import load_adapter
from fedadapt.experiment import proposals, run
from fedadapt.experiment.build import build
from fedadapt.experiment.forecast import forecast
from fedadapt.registry import ROOMS, names
from fedadapt.runs.records import Direction
from fedadapt.runs.store import RunStore

COMMANDS = (
    "run",
    "resume",
    "plan",
    "partition",
    "report",
    "compare",
    "export",
    "inspect",
    "pretrain",
    "list",
)


def test_run_tells_its_rounds(tmp_path, recipe, fedadapt):
    """A run prints what it is, one line a round, and how to see it; errors stay empty."""
    ended = fedadapt("run", recipe, "--runs", tmp_path / "runs", "-s", "rounds=2", "--set=name=other")
    assert (ended.code, ended.err) == (0, "")
    lines = [line for line in ended.out.splitlines() if line.startswith("round")]
    assert len(lines) == 2
    assert all("accuracy" in line and "down" in line and "up" in line for line in lines)
    assert "fedadapt report" in ended.out
    with RunStore.read(tmp_path / "runs" / "other") as store:
        assert store.last_round == 2


def test_a_run_says_that_features_are_kept(tmp_path, recipe, fedadapt):
    """Where images are not augmented and only the head is trained; otherwise there is no such line."""
    told = "is computed once and kept"
    for name, settings, kept in (("still", ["--set=data.augment.pad=0"], True), ("moved", [], False)):
        ended = fedadapt(
            "run",
            recipe,
            "--runs",
            tmp_path,
            "--set=rounds=1",
            "--set=adapter=head",
            f"--set=name={name}",
            *settings,
        )
        assert (told in " ".join(ended.out.split())) == kept, ended.out


def test_resume_goes_on(tmp_path, fedadapt):
    """``resume`` plays the missing rounds, and nothing when none is missing."""
    with pytest.raises(Stopped):
        run(tiny(), tmp_path, watcher=StopAfter(1))
    ended = fedadapt("resume", tmp_path / "tiny")
    assert (ended.code, ended.err) == (0, "")
    assert "going on after round 1" in ended.out
    assert [line.split()[1] for line in ended.out.splitlines() if line.startswith("round")] == ["2", "3"]
    again = fedadapt("resume", tmp_path / "tiny")
    assert again.code == 0
    assert not [line for line in again.out.splitlines() if line.startswith("round")]


def test_plan_as_json(recipe, fedadapt):
    """``plan --json`` is one object with the bytes of messages, rounds and the run, and nothing runs."""
    ended = fedadapt("plan", recipe, "--json", "-s", "cohort=3")
    told = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert told["round_bytes"]["download"] == 3 * told["message_bytes"]["download"]
    assert told["run_bytes"] == 3 * sum(told["round_bytes"].values())
    assert {group["group"] for group in told["groups"]} == {
        "adapter", "norm_affine", "norm_statistics", "head", "backbone"
    }  # fmt: skip
    assert 0 < told["share"] < 1
    assert told["full_model_bytes"] == 4 * build(tiny()).backbone.num_parameters
    assert not (recipe.parent / "runs").exists()


def test_plan_for_people(recipe, fedadapt):
    """``plan`` names every group."""
    ended = fedadapt("plan", recipe)
    assert ended.code == 0
    assert all(word in ended.out for word in ("adapter", "head", "backbone"))


def test_plan_proposes_within_a_budget(recipe, fedadapt):
    """Every proposal keeps within the budget, is foretold to, and the largest that can comes first."""
    told = json.loads(fedadapt("plan", recipe, "--budget", "9KiB", "--json").out)
    assert told["budget"] == 9 * 1024
    assert all(max(p["download"], p["upload"]) <= 9 * 1024 for p in told["proposals"])
    assert {"parallel", "norm_head", "head"} <= {p["adapter"]["name"] for p in told["proposals"]}
    first = told["proposals"][0]
    again = forecast(build(tiny(*first["settings"])))
    assert again["message_bytes"] == {"download": first["download"], "upload": first["upload"]}
    fine = [p for p in told["proposals"] if "int1" not in p["codec"] and "int2" not in p["codec"]]
    assert first["values"] == max(p["values"] for p in fine)
    said = fedadapt("plan", recipe, "--budget", "9KiB").out
    assert "take the first: --set 'adapter=" in said
    assert "no adapter fits" in fedadapt("plan", recipe, "--budget", "9").out
    assert fedadapt("plan", recipe, "--budget", "much").code == 2


def test_proposals_are_of_what_the_run_sends(recipe, fedadapt, monkeypatch):
    """A head that clients keep is not in the budget, and a number that an algorithm's clients send is."""
    monkeypatch.setattr(proposals, "RANKS", (1,))
    settings = ("head=kept", "algorithm=qfedavg")
    told = json.loads(
        fedadapt("plan", recipe, "--budget", "2KiB", "--json", *(f"--set={s}" for s in settings)).out
    )
    first = told["proposals"][0]
    again = forecast(build(tiny(*settings, *first["settings"])))
    assert again["message_bytes"] == {"download": first["download"], "upload": first["upload"]}
    assert sum(g["values"] for g in again["groups"] if g["travels"] == "shared") == first["values"]


def test_partition_shows_who_holds_what(tmp_path, recipe, fedadapt):
    """``partition`` prints the measures of skew, and writes a page that needs nothing else."""
    ended = fedadapt("partition", recipe, "--out", tmp_path / "page.html", "-s", "data.partition=dirichlet")
    assert ended.code == 0, ended.err
    assert all(measure in ended.out for measure in ("Jensen-Shannon", "mean effective classes", "size Gini"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_partition_of_a_million_shows_some(tmp_path, recipe, fedadapt):
    """Of a million clients the first two hundred are listed; with domains their divergence is measured too."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "set.npz",
        x_train=rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8),
        y_train=np.arange(60) % 3,
        domain_train=np.arange(60) // 30,
    )
    settings = ("data.num_clients=1000000", "data.partition={name = 'virtual', size = 5}", "data.limit=40")
    source = f"data.source={{name = 'npz', path = '{tmp_path / 'set.npz'}'}}"
    page = tmp_path / "page.html"
    ended = fedadapt("partition", recipe, "--out", page, *(p for s in (*settings, source) for p in ("-s", s)))
    assert ended.code == 0, ended.err
    assert "mean Jensen-Shannon divergence of domains" in " ".join(ended.out.split())
    assert "1,000,000 clients, the first 200" in page.read_text(encoding="utf-8")


def test_a_run_that_changes_nothing_says_so(tmp_path, recipe, fedadapt):
    """Every empty round has its cause, and at the end there is a warning; a run of which some rounds count has none."""
    whole = ("run", recipe, "--set", "rounds=2", "--runs", tmp_path)
    ended = fedadapt(*whole, "--set", "train.lr=1e30", "--set", "train.batch_size=4")
    said = " ".join(ended.out.split())
    assert ended.code == 0
    assert said.count("empty, the model stays as it was: 4 failed (client 0: training diverged") == 2
    assert "warning: no round changed the model; in the last one: 4 failed" in said
    ended = fedadapt(*whole, "--overwrite", "--set", "population.dropout=0.3")
    assert "warning" not in ended.out


def test_compare_as_json(finished, fedadapt):
    """``compare --json`` is a list with one object a run, whose bytes are those of the ledger."""
    ended = fedadapt("compare", finished, finished, "--json")
    first, second = json.loads(ended.out)
    assert (ended.code, ended.err) == (0, "")
    assert first == second
    assert list(first)[:3] == ["run", "rounds", "accuracy"]
    assert {"run", "rounds", "accuracy", "upload_bytes", "download_bytes", "backbone_bytes"} <= set(first)
    with RunStore.read(finished) as store:
        by_way = {
            way: sum(entry.num_bytes for entry in store.ledger() if entry.direction is way)
            for way in Direction
        }
        assert first["accuracy"] == store.rounds()[-1].metrics["accuracy"]
        assert first["backbone_bytes"] == store.manifest["backbone"]["bytes"]
    assert (first["run"], first["rounds"]) == ("tiny", 1)
    assert (first["upload_bytes"], first["download_bytes"]) == (
        by_way[Direction.UPLOAD],
        by_way[Direction.DOWNLOAD],
    )


def test_a_page_beside_json_leaves_the_json_alone(tmp_path, finished, fedadapt):
    """With ``--page`` what is said about the page goes to standard error."""
    ended = fedadapt("compare", finished, "--json", "--page", tmp_path / "page.html")
    assert ended.code == 0
    assert json.loads(ended.out)[0]["run"] == "tiny"
    assert "page.html" in ended.err
    assert (tmp_path / "page.html").is_file()


def test_compare_and_report_for_people(finished, fedadapt):
    """Both print a table with the run; ``report`` writes its page into the run directory."""
    compared, reported = fedadapt("compare", finished), fedadapt("report", finished)
    assert compared.code == reported.code == 0
    assert "tiny" in compared.out
    assert "tiny" in reported.out
    assert (finished / "report.html").is_file()


def test_an_adapter_is_exported_and_inspected(tmp_path, finished, fedadapt):
    """``export --format adapter`` writes what ``inspect`` describes and `load_adapter` takes."""
    file = tmp_path / "adapter.safetensors"
    assert fedadapt("export", finished, file, "--format", "adapter").code == 0
    ended = fedadapt("inspect", file, "--json")
    manifest = json.loads(ended.out)
    experiment = build(tiny())
    assert (manifest["adapter"], manifest["norms"], manifest["backbone"]) == (
        "parallel",
        "frozen",
        "resnet20",
    )
    assert manifest["backbone_digest"] == experiment.backbone.digest
    assert len(manifest["sites"]) == 19
    assert list(load_adapter(experiment.model, file)) == list(manifest["tensors"])
    people = fedadapt("inspect", file)
    assert "19 sites" in people.out
    assert experiment.backbone.digest in people.out


def test_the_network_is_exported(tmp_path, finished, fedadapt):
    """``export`` writes the merged network, and ``inspect`` says which run it is from."""
    file = tmp_path / "network.safetensors"
    ended = fedadapt("export", finished, file)
    assert (ended.code, str(file) in ended.out) == (0, True)
    said = fedadapt("inspect", file)
    assert said.code == 0
    assert said.out.startswith("network\n")
    told = json.loads(fedadapt("inspect", file, "--json").out)
    assert (told["run"], told["round"], len(told["class_names"])) == ("tiny", 1, 10)
    (tmp_path / "text").write_text("nothing of the kind")
    assert fedadapt("inspect", tmp_path / "text").code == 5


def test_a_format_that_there_is_not_is_refused(tmp_path, finished, fedadapt):
    """The command line names those that there are."""
    ended = fedadapt("export", finished, tmp_path / "out", "--format", "pickle")
    assert ended.code == 2
    assert "onnx" in ended.err


def test_list_as_json(fedadapt):
    """``list --json`` has every kind, every name, and each option with its default."""
    listed = json.loads(fedadapt("list", "--json").out)
    assert set(listed) == set(ROOMS)
    assert {kind: sorted(entries) for kind, entries in listed.items()} == {
        kind: names(kind) for kind in ROOMS
    }
    assert listed["adapter"]["parallel"]["options"]["init"] == "'zero'"
    assert listed["source"]["npz"]["options"]["path"] == "required"
    assert all(entry["summary"] for entries in listed.values() for entry in entries.values())


def test_list_of_one_kind(fedadapt):
    """``list KIND`` has that kind only; another word is an error that names the kinds."""
    ended = fedadapt("list", "codec")
    assert "float32" in ended.out
    assert "parallel" not in ended.out
    wrong = fedadapt("list", "codecs")
    assert wrong.code == 2
    assert "codec" in wrong.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(fedadapt, command):
    """``--help`` says what the command does, without loading what it would need to do it."""
    ended = fedadapt(command, "--help")
    assert ended.code == 0
    assert "Usage: fedadapt" in ended.out


def test_the_shell_completes_commands(monkeypatch, fedadapt):
    """There is a completion script, and it completes commands."""
    assert "--show-completion" in fedadapt("--help").out
    monkeypatch.setenv("_FEDADAPT_COMPLETE", "source_bash")
    assert "_fedadapt_completion" in fedadapt().out
    monkeypatch.setenv("_FEDADAPT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "fedadapt re")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert set(fedadapt().out.split()) == {"resume", "report", "results"}


def test_a_reader_that_leaves_is_no_crash():
    """Output into a pipe that nobody reads ends without a traceback."""
    process = start("list", "--json")
    process.stdout.close()
    errors = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert "Traceback" not in errors
