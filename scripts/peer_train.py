"""Writes crates/train/tests/goldens/adamw50.json: the losses of PyTorch on a tiny K2 model.

    python scripts/peer_train.py [--steps 50] [--lr 0.002] …      (reference.py says what to install)

Seeded weights (seeded.py) and the learnable text seeded.stream, cut without gaps: sequence b of step s
(both from 0) is the tokens [(s * batch + b) * (length + 1), … + length + 1), of which the first `length` are
inputs and the last `length` are targets. The loss is the mean cross-entropy over all batch * length targets,
taken before the update of its step. One AdamW for every parameter, decoupled decay on all of them (K2 decays
RMSNorm gains too), constant rate, no gradient clipping, no balancing: the selection bias stays as seeded, and
there is no auxiliary loss. An expert that no token chose has a gradient of zero, not none: its moments and its
weights decay.

A router's choice that flips by rounding parts two runs for good (seed 1 with --lr 0.003: by 7e-2 after 50
steps), so the seed and the rate are ones at which f32 and f64 stay together to the end.

    losses          in f32
    losses_f64      the same run with all arithmetic in f64 except the rotation frequencies (f32)
    gradient_norms  of all parameters together, per step, in f32
"""

import argparse
import json
import math
import pathlib

import torch
import transformers

import reference
import seeded
from goldens import write

FILE = pathlib.Path(__file__).parent.parent / "crates/train/tests/goldens/adamw50.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="AdamW losses of transformers' DeepSeek-V3 on a seeded text.")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=33)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--beta1", type=float, default=0.9)
    parser.add_argument("--beta2", type=float, default=0.95)
    parser.add_argument("--eps", type=float, default=1e-8)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--output", type=pathlib.Path, default=FILE)
    return parser.parse_args()


def batches(options: argparse.Namespace, vocabulary: int) -> torch.Tensor:
    """Token ids [steps, batch, length + 1]."""
    shape = (options.steps, options.batch, options.length + 1)
    return torch.tensor(seeded.stream(math.prod(shape), vocabulary, options.seed)).view(shape)


def train(model: torch.nn.Module, ids: torch.Tensor, options: argparse.Namespace) -> tuple[list, list]:
    """Loss and gradient norm of each step."""
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        foreach=False,
    )
    model.train()
    losses, norms = [], []
    for batch in ids:
        logits = model(batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    options = arguments()
    config = reference.K2
    weights = seeded.weights(config, options.seed)
    ids = batches(options, config["vocab_size"])
    losses, norms = train(reference.load(config, weights), ids, options)
    with reference.wide():
        losses_f64, _ = train(reference.load(config, weights).double(), ids, options)
    recipe = {name: value for name, value in vars(options).items() if name != "output"}
    result = {
        "made_with": reference.versions(),
        "config": config,
        **recipe,
        "tokens_first": ids.flatten()[:16].tolist(),
        "losses": losses,
        "losses_f64": losses_f64,
        "gradient_norms": norms,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write(options.output, result)
    noise = max(abs(a - b) for a, b in zip(losses, losses_f64))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, largest |f32 - f64| {noise:.1e}")


if __name__ == "__main__":
    main()
