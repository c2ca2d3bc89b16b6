"""The default pair beside llama.cpp with the file that the default target is made of.

    npm install --prefix FOLDER node-llama-cpp@3.22.1
    python -m benchmarks.llama_cpp --npm FOLDER [--threads 2] [--max-new-tokens 64] [--rounds 2]
        [--dtype int4]

llama.cpp computes with the file's 4-bit weights and activations in 8 bits; Outrider with the same
weights in float16 and activations in float32, or by `--dtype int4` in 4 bits and bfloat16. Greedy
answers to the benchmark's prompts, in turn; medians of the rounds of the time per token after the
first.
"""

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.texts import ALONE, PAIR, WAYS, tpot_ms
from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider.embedded.target import packaged_gguf
from outrider_bench.harness.prompts import read_prompts
from outrider_bench.output.results_file import write_result

SCRIPT = Path(__file__).parent / "support" / "llama_cpp.mjs"
# The chat template of the default target.
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--npm", type=Path, required=True, help="folder with node_modules")
    parser.add_argument("--threads", type=int, default=2, help="of either target")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "int4"), default="float32")
    args = parser.parse_args()
    script = shutil.copy(SCRIPT, args.npm)  # node looks for packages beside it
    command = ["node", script, str(packaged_gguf()[0]), str(args.threads), str(args.max_new_tokens)]
    target = {"port": 0, "slots": 2, "threads": args.threads, "dtype": args.dtype}
    with (
        running_system(target, {"port": 0, "slots": 2, "threads": 1}, {"port": 0}) as (address, _),
        Client(address) as client,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node,
    ):
        assert node.stdin is not None
        assert node.stdout is not None
        about = json.loads(node.stdout.readline())
        texts = []
        for prompt in read_prompts(None):
            times: dict[str, list[float]] = {ALONE: [], PAIR: [], "llama.cpp": []}
            for _ in range(args.rounds):
                for way in (ALONE, PAIR):
                    message = [{"role": "user", "content": prompt}]
                    answer = client.generate(
                        message, max_new_tokens=args.max_new_tokens, **WAYS[way]
                    )
                    times[way].append(tpot_ms([answer]))
                print(json.dumps(TEMPLATE.format(prompt)), file=node.stdin, flush=True)
                times["llama.cpp"].append(json.loads(node.stdout.readline())["tpot_ms"])
            text = {way: round(statistics.median(took), 2) for way, took in times.items()}
            texts.append({"prompt": prompt, "ms_a_token": text})
            print(text, prompt[:50])
        node.stdin.close()
    summary: dict[str, Any] = {
        f"{way} / llama.cpp": round(
            statistics.median(
                text["ms_a_token"]["llama.cpp"] / text["ms_a_token"][way] for text in texts
            ),
            3,
        )
        for way in (ALONE, PAIR)
    }
    print(summary)
    settings = {name: value for name, value in vars(args).items() if name != "npm"}
    name = "llama_cpp" if args.dtype == "float32" else f"llama_cpp_{args.dtype}"
    print(write_result(name, settings, llama_cpp=about, speed=summary, texts=texts))


if __name__ == "__main__":
    main()
