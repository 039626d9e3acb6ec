"""A character-level GPT on real English: the help texts that come with Python. About half a minute on two cores.

python examples/char_gpt.py [--lr 3e-3] [--steps 300] [--seed 1]
"""

import argparse
import math
import time
from pydoc_data.topics import topics

import sdk

try:
    import torch
except ModuleNotFoundError:
    raise SystemExit("This example needs torch: run `make examples` in Encore's folder, or install torch into this environment.") from None
from torch import nn
from torch.nn import functional as F


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", default="examples")
    parser.add_argument("--name", default="char-gpt")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=25)
    parser.add_argument("--fail-at", type=int, default=-1, help="raise an error at this step")
    return parser.parse_args()


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time_, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time_, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, time_, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(part: nn.Module) -> None:
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.05)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` int64 [batch, time] → logits [batch, time, vocabulary]."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def generate(self, tokens: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
        for _ in range(length):
            odds = F.softmax(self(tokens[:, -self.context :])[:, -1] / 0.8, dim=-1)
            if not torch.isfinite(odds).all():  # a diverged model has nothing to say
                break
            tokens = torch.cat([tokens, torch.multinomial(odds, 1, generator=generator)], dim=1)
        return tokens


def main() -> None:
    args = parse()
    config = sdk.init(project=args.project, name=args.name, tags=["text"], config=vars(args)).config
    torch.manual_seed(config["seed"])

    text = "\n\n".join(topics[name] for name in sorted(topics))
    letters = sorted(set(text))
    code = {letter: number for number, letter in enumerate(letters)}
    data = torch.tensor([code[letter] for letter in text])
    cut = int(0.9 * len(data))
    splits = {"train": data[:cut], "val": data[cut:]}
    print(f"{len(text):,} characters of English, {len(letters)} different ones")

    def batch(split: str, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        source, context = splits[split], config["context"]
        starts = torch.randint(len(source) - context - 1, (config["batch"],), generator=generator)
        return torch.stack([source[s : s + context] for s in starts]), torch.stack([source[s + 1 : s + context + 1] for s in starts])

    model = GPT(len(letters), config["context"], config["layers"], config["width"], config["heads"], config["dropout"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"], betas=(0.9, 0.95), weight_decay=0.1)
    steps, warmup = config["steps"], config["warmup"]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (s + 1) / warmup if s < warmup else 0.1 + 0.45 * (1 + math.cos(math.pi * (s - warmup) / max(1, steps - warmup))),
    )

    @torch.no_grad()
    def validate() -> float:
        model.eval()
        fixed = torch.Generator().manual_seed(0)  # the same batches each time, without touching the training's own randomness
        losses = []
        for _ in range(8):
            tokens, following = batch("val", fixed)
            losses.append(F.cross_entropy(model(tokens).flatten(0, 1), following.flatten()))
        model.train()
        return torch.stack(losses).mean().item()

    for step in range(steps):
        began = time.perf_counter()
        if step == config["fail_at"]:
            raise RuntimeError(f"failing at step {step}, as asked")
        tokens, following = batch("train")
        loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
        values = {
            "train/loss": loss.item(),
            "train/grad_norm": norm.item(),
            "lr": schedule.get_last_lr()[0],
            "tokens_per_second": tokens.numel() / (time.perf_counter() - began),
        }
        schedule.step()
        if step % config["eval_every"] == 0 or step == steps - 1:
            values["val/loss"] = validate()
            print(f"step {step:4d}  train {values['train/loss']:.3f}  val {values['val/loss']:.3f}", flush=True)
        sdk.log(values, step=step)

    model.eval()
    prompt = torch.tensor([[code[letter] for letter in "The "]])
    sample = model.generate(prompt, 200, torch.Generator().manual_seed(config["seed"]))[0]
    print("The model writes:\n" + "".join(letters[number] for number in sample.tolist()))
    sdk.finish()


if __name__ == "__main__":
    main()
