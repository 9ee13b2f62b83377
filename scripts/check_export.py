"""Does `transformers` load what `chogori export` wrote, unchanged, and give the log-probabilities of `chogori score`?

    chogori export RUN my-model && chogori score my-model --tokens 1,2,3,4,5 --dtype f32 --json > scores.json
    python scripts/check_export.py my-model scores.json [--save FOLDER]

Prints one JSON object with the largest difference and exits with 1 if it is above 1e-4, or if a tensor was missing or
unexpected. With --save the model is also written back by `transformers`, for `chogori score FOLDER`.
Needs `pip install torch transformers`.
"""

import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM

BOUND = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scores")
    parser.add_argument("--save")
    arguments = parser.parse_args()
    with open(arguments.scores) as file:
        scores = json.load(file)
    model, loading = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: sorted(loading[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading[key]}
    tokens = scores["tokens"]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double()
    theirs = torch.log_softmax(logits, dim=-1)
    differences = [abs(theirs[i - 1, tokens[i]].item() - scores["logprobs"][i]) for i in range(1, len(tokens))]
    result = {"tokens": len(tokens), "largest_difference": max(differences), "problems": problems}
    print(json.dumps(result))
    if arguments.save:
        model.save_pretrained(arguments.save)
    return int(bool(problems) or result["largest_difference"] > BOUND)


if __name__ == "__main__":
    sys.exit(main())
