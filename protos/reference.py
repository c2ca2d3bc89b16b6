"""Prints docs/api.md: what protos/ defines, with its comments."""

import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

FILES = [f"outrider/v1/{name}.proto" for name in ("generation", "common", "draft", "target")]
INTRODUCTION = """# API reference

Written by `make proto` from the comments in [protos/](../protos/outrider/v1): edit those, not this
page. Clients call [GenerationService](#generationservice); the orchestrator calls the other two
services. A field that is left out is 0, false or empty; only an `optional` one can be unset."""


def descriptors() -> FileDescriptorSet:
    includes = [f"-I{Path(__file__).parent}", f"-I{files('grpc_tools') / '_proto'}"]
    with tempfile.NamedTemporaryFile() as out:
        if protoc.main(["protoc", *includes, "--include_source_info", "-o", out.name, *FILES]):
            sys.exit("protoc failed")
        return FileDescriptorSet.FromString(Path(out.name).read_bytes())


def link(full_name: str) -> str:
    name = full_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if full_name.startswith(".outrider.") else name


def type_of(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    for entry in message.nested_type:  # of which we have those of maps only
        if field.type_name.endswith(f".{entry.name}"):
            return f"map from {' to '.join(type_of(part, entry) for part in entry.field)}"
    plain = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    is_list = field.label == FieldDescriptorProto.LABEL_REPEATED
    prefix = "optional " if field.proto3_optional else "repeated " if is_list else ""
    if field.HasField("oneof_index") and not field.proto3_optional:
        prefix = f"one `{message.oneof_decl[field.oneof_index].name}`: "
    return prefix + (link(field.type_name) or plain)


def one_line(comment: str) -> str:
    """For a cell of a table. A comment with a list, whose items are indented, keeps its lines."""
    return ("<br>" if "\n   " in comment else " ").join(map(str.strip, comment.splitlines()))


def page() -> Iterator[str]:
    """Its paragraphs. The numbers are those of fields of a FileDescriptorProto and its parts."""
    yield INTRODUCTION
    for file in sorted(descriptors().file, key=lambda file: FILES.index(file.name)):
        said = {
            tuple(place.path): re.sub(r"([*<|])", r"\\\1", place.leading_comments.strip())
            for place in file.source_code_info.location
        }
        line = {path: one_line(comment) for path, comment in said.items()}
        yield f"## {Path(file.name).name}\n\n{line[12,]}"
        for i, service in enumerate(file.service):
            yield f"### {service.name}"
            for j, call in enumerate(service.method):
                asks = "stream of " * call.client_streaming + link(call.input_type)
                gets = "stream of " * call.server_streaming + link(call.output_type)
                yield f"**{call.name}**: {asks} → {gets}"
                yield said[6, i, 2, j].replace("\n ", "\n")
        for i, message in enumerate(file.message_type):
            yield f"### {message.name}"
            yield line[4, i]
            rows = [
                f"| `{field.name}` | {type_of(field, message)} | {line[4, i, 2, j]} |"
                for j, field in enumerate(message.field)
            ]
            yield "\n".join(["| field | type | |", "|---|---|---|", *rows] * bool(rows))
        for i, enum in enumerate(file.enum_type):
            yield f"### {enum.name}"
            values = list(enumerate(enum.value))[1:]  # the first one says that it is unset
            yield "\n".join(f"- `{value.name}`: {line[5, i, 2, j]}" for j, value in values)


if __name__ == "__main__":
    print("\n\n".join(filter(None, page())))
