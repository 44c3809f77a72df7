"""Checkpoints of the hub, from a server on this machine that speaks its protocol: fetched, measured, deleted."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.test_checkpoint_series import OPTIONS, SETTINGS, records, series
from zslx.commands.cli import main
from zslx.probing.checkpoint_series import SeriesProbe
from zslx.probing.hub_series import HubProbe, as_safetensors
from zslx.testing.subject import text

huggingface_hub = pytest.importorskip("huggingface_hub")
pytestmark = [pytest.mark.medium, pytest.mark.usefixtures("cache")]

NAMES = ["step0", "step1", "step2"]


class Hub(http.server.ThreadingHTTPServer):
    """One repository, lab/pythia: the folders of `root` are its revisions. `stalls`: a file whose bytes never end."""

    def __init__(self, root: Path):
        self.root, self.asked, self.stalls = root, list[str](), ""
        self.daemon_threads = True
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commits(self) -> dict[str, str]:
        return {p.name: _digest(p) for p in sorted(self.root.iterdir()) if p.is_dir()}

    def weights_asked(self) -> list[str]:
        """Revisions whose weights were sent, in order."""
        commits = {commit: name for name, commit in self.commits().items()}
        return [commits[path.split("/")[4]] for path in self.asked if path.endswith((".safetensors", ".bin"))]


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        folders = {commit: hub.root / name for name, commit in hub.commits().items()}
        if path == "/api/models/lab/pythia/refs":
            refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in hub.commits().items()]
            return self.send({"branches": refs, "tags": [], "converts": []})
        if path.startswith("/api/models/lab/pythia/tree/"):
            files = sorted(folders[path.rpartition("/")[2]].iterdir())
            return self.send(
                [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _digest(f)} for f in files]
            )
        if path.startswith("/lab/pythia/resolve/"):
            commit, name = path.split("/")[4:]
            file = folders[commit] / name
            if file.exists():
                return self.send_file(file, commit)
        self.send_error(404)

    do_HEAD = do_GET

    def send(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, file: Path, commit: str) -> None:
        data, hub = file.read_bytes(), self.server
        self.send_response(200)
        headers = {"Content-Length": len(data), "ETag": f'"{_digest(file)}"', "X-Repo-Commit": commit}
        for key, value in headers.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        hub.asked.append(self.path)
        if f"{file.parent.name}/{file.name}" == hub.stalls:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(60)
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def _digest(path: Path) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    assert all(f.is_file() for f in files)
    return hashlib.sha1(path.name.encode() + b"".join(f.name.encode() + f.read_bytes() for f in files)).hexdigest()


@pytest.fixture(scope="module")
def pythia(cache: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The series as folders, with the tokenizer in each as on the hub, and a main branch."""
    folder = series(tmp_path_factory.mktemp("lab") / "pythia", "gpt_neox", NAMES)
    for name in NAMES:
        shutil.copy(folder / "tokenizer.json", folder / name)
    (folder / "tokenizer.json").unlink()
    shutil.copytree(folder / "step2", folder / "main")
    return folder


@pytest.fixture
def hub(pythia: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server of a copy of the series; this process and its children take it for the hub. In a folder of its own."""
    server = Hub(Path(shutil.copytree(pythia, tmp_path / "hub")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for key, value in {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield server
    server.shutdown()
    server.server_close()


def probe(**options: object) -> HubProbe:
    return HubProbe("hf:lab/pythia", SETTINGS, str(text()), **options)


def quiet(share: float, what: str) -> None:
    pass


def test_the_records_are_those_of_the_folders_and_nothing_is_left(hub, pythia, capsys, monkeypatch):
    """And the next checkpoint is asked for while one is measured: its record waits for that here."""
    real, at_record = HubProbe._append, []

    def append(self, record):
        following = NAMES[NAMES.index(record["checkpoint"]) + 1 :][:1]
        deadline = time.monotonic() + 20
        while not set(following) <= set(hub.weights_asked()) and time.monotonic() < deadline:
            time.sleep(0.01)
        at_record.append(hub.weights_asked())
        real(self, record)

    monkeypatch.setattr(HubProbe, "_append", append)
    assert main(["probe", "hf:lab/pythia", "--text", str(text()), *OPTIONS, "--no-figures"]) == 0
    said = capsys.readouterr().err
    assert "pythia: 3 checkpoints" in said and "pythia: 3 × 0.0 MiB from hf:lab/pythia" in said
    assert at_record == [NAMES[:2], NAMES, NAMES]
    assert not any(Path("pythia/zslx-probe/fetched").iterdir())
    found = records(Path("pythia"))
    folders = SeriesProbe(shutil.copytree(pythia, "folders"), SETTINGS, str(text()))
    expected = folders.measure(folders.steps(), quiet)
    assert [r | {"weights": ""} for r in found] == [r | {"weights": ""} for r in expected.values()]
    commits = hub.commits()
    assert [r["weights"] for r in found] == [commits[name] for name in NAMES]

    # Measured again is what changed on the hub, and no other.
    hub.asked.clear()
    shutil.copy(hub.root / "step2" / "model.safetensors", hub.root / "step1")
    again = probe()
    again.measure(again.steps(), quiet)
    assert hub.weights_asked() == ["step1"]


def test_a_killed_probe_goes_on(hub):
    hub.stalls = "step2/model.safetensors"
    command = [sys.executable, "-m", "zslx", "probe", "hf:lab/pythia", "--text", str(text()), *OPTIONS]
    kept = Path("pythia/zslx-probe/probe.jsonl")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as killed:
        deadline = time.monotonic() + 60
        while not (kept.exists() and kept.read_text().count("\n") == 2) and time.monotonic() < deadline:
            assert killed.poll() is None, killed.stderr.read()
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    assert [r["step"] for r in records(Path("pythia"))] == [0, 1]
    (Path("pythia/zslx-probe/fetched") / "step1").mkdir(exist_ok=True)  # as if killed before it was deleted
    hub.stalls = ""
    hub.asked.clear()
    again = probe()
    assert sorted(again.measure(again.steps(), quiet)) == [0, 1, 2]
    assert hub.weights_asked() == ["step2"] and not any(Path("pythia/zslx-probe/fetched").iterdir())


def test_what_is_kept_is_a_series_of_folders(hub):
    kept = probe(revisions="step1,step2", keep=True)
    assert len(kept.measure(kept.steps(), quiet)) == 2
    found = SeriesProbe("pythia", SETTINGS, str(text()))
    assert found.available == [1, 2] and (Path("pythia/step2") / "config.json").exists()
    hub.asked.clear()
    kept.measure(kept.steps(), quiet)
    assert hub.asked == []


def test_weights_of_pickles_are_read_as_tensors_alone(hub):
    for name in ("step1", "step2"):
        tensors = load_file(hub.root / name / "model.safetensors")
        (hub.root / name / "model.safetensors").unlink()
        names = sorted(tensors)
        shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, part in shards.items():
            torch.save({key: tensors[key] for key in part}, hub.root / name / file)
        where = {key: file for file, part in shards.items() for key in part}
        (hub.root / name / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    pickled = probe()
    found = pickled.measure(pickled.steps(), quiet)
    whole = SeriesProbe(series(Path("whole"), "gpt_neox", NAMES), SETTINGS, str(text()))
    expected = whole.measure(whole.steps(), quiet)
    assert {s: r | {"weights": ""} for s, r in found.items()} == {s: r | {"weights": ""} for s, r in expected.items()}

    class Code:
        def __reduce__(self):
            return (os.system, ("touch pwned",))

    torch.save({"weight": Code()}, "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: cannot be read as weights"):
        as_safetensors(Path("."))
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("revision", r"--revisions: revision 'step7' of hf:lab/pythia does not exist; there are main, step0, step1"),
        ("model", r"hf:lab/other: cannot fetch its revisions: .*404"),
        ("weights", r"revision 'step1' of hf:lab/pythia: no config.json, or no model.safetensors or"),
        ("disk", r"pythia: it takes \d{5} bytes of disk and there are 10"),
        ("gone", r"hf:lab/pythia: cannot fetch revision step0: .*offline"),
    ],
)
def test_what_cannot_be_fetched_is_refused_by_name(damage, message, hub, monkeypatch):
    if damage == "weights":
        (hub.root / "step1" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        name, revisions = ("hf:lab/other", "") if damage == "model" else ("hf:lab/pythia", "step7" * (damage != "gone"))
        if damage in ("weights", "disk"):
            revisions = "step1"
        found = HubProbe(name, SETTINGS, str(text()), revisions=revisions)
        if damage == "disk":
            usage = type("Usage", (), {"free": 10})
            monkeypatch.setattr("zslx.probing.checkpoint_series.shutil.disk_usage", lambda path: usage)
        if damage == "gone":
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        found.before(found.steps(), lambda line: None)
        found.measure(found.steps(), quiet)


def test_a_model_without_steps_is_its_main_revision(hub):
    for name in NAMES:
        shutil.rmtree(hub.root / name)
    found = probe()
    assert found.available == [0]
    assert found.measure(found.steps(), quiet)[0]["checkpoint"] == "main"


def test_options_of_the_hub_without_a_model_of_it(tmp_path, capsys):
    assert main(["probe", str(tmp_path), "--revisions", "step1"]) == 2
    assert "are about models of the hub: give hf:OWNER/NAME" in capsys.readouterr().err
