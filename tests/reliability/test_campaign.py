"""The long form runs, counts, finds faults and goes on where it was stopped."""

import json

from tests.reliability import campaign


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    ran = []

    def run(name, seconds, first, folder):
        ran.append((name, first))
        fault = "it broke" if (name, first) == ("kills", 1) else None
        trial = {"part": name, "seed": first, "fault": fault, "counts": {"kills": 2}}
        return [trial | {"seconds": 60.0}]

    monkeypatch.setattr(campaign, "_run_process", run)
    assert campaign.run_all(2, tmp_path, ["kills"]) == 1
    assert ran == [("kills", 0), ("kills", 1)]
    assert campaign.run_all(3, tmp_path, ["kills"]) == 1
    assert ran[2:] == [("kills", 2)]
    printed = capsys.readouterr().out
    assert "FAULT, seed 1: it broke" in printed
    assert "| kills | 3 | 3.0 | 6 kills | 1 |" in printed
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


def test_a_process_that_dies_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign.sys, "executable", "/bin/false")
    (line,) = campaign._run_process("kills", 1.0, 7, tmp_path)
    assert line["seed"] == 7 and "ended with 1" in json.dumps(line)


def test_every_part_has_a_module_and_a_share():
    assert sum(part.share for part in campaign.PARTS.values()) == 1
