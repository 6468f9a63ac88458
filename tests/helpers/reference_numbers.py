"""Compute scores with transformers and sentence-transformers, to compare the tasks with.

Run as a script, `reference_numbers.py MODELS ROWS OUT` reads the models' folders by name and the
rows from two JSON files, and writes the numbers to a third.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(models: dict[str, str], rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """For each kind of number, a list with one entry per row."""
    import torch  # noqa: PLC0415 - only the script pays for the import
    import transformers as hf  # noqa: PLC0415
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    torch.set_grad_enabled(False)
    load = {"dtype": torch.float32}
    tokenizer = hf.AutoTokenizer.from_pretrained(models["writer"])
    writer = hf.AutoModelForCausalLM.from_pretrained(models["writer"], **load)
    words = hf.AutoTokenizer.from_pretrained(models["embed"])
    encoder = SentenceTransformer(models["embed"], device="cpu")
    judge = hf.AutoModelForSequenceClassification.from_pretrained(models["reward"], **load)
    pairs = hf.AutoModelForSequenceClassification.from_pretrained(models["rerank"], **load)

    def sums(ids: list[int], first: int) -> tuple[float, int]:
        """The sum of the log-probabilities of the tokens from `first` on, and their number."""
        logits = writer(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        of_tokens = logits[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).squeeze(1)
        return float(of_tokens[first - 1 :].sum()), len(ids) - first

    def in_windows(ids: list[int], length: int, stride: int) -> tuple[float, int]:
        """As in transformers' guide to perplexity: each token is scored in one window only."""
        total, count, scored = 0.0, 0, 1
        for begin in range(0, len(ids), stride):
            end = min(begin + length, len(ids))
            part, number = sums(ids[begin:end], scored - begin)
            total, count, scored = total + part, count + number, end
            if end == len(ids):
                break
        return total, count

    def chat(*turns: tuple[str, str], answered: bool) -> list[int]:
        messages = [{"role": role, "content": content} for role, content in turns]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not answered
        )
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def reward(row: dict[str, Any], answer: str) -> float:
        ids = chat(("user", row["title"]), ("assistant", answer), answered=True)
        return float(judge(torch.tensor([ids])).logits)

    numbers: dict[str, list[Any]] = {
        name: [] for name in ("text", "windows", "answer", "vector", "rewards", "best", "pair")
    }
    for row in rows:
        ids = tokenizer(row["text"]).input_ids
        numbers["text"].append(sums(ids, 1))
        numbers["windows"].append(in_windows(ids, 48, 16))
        prompt = chat(("user", row["title"]), answered=False)
        answer = tokenizer(row["text"], add_special_tokens=False).input_ids
        numbers["answer"].append(sums(prompt + answer, len(prompt)))
        numbers["vector"].append(encoder.encode(row["text"]).tolist())
        numbers["rewards"].append([reward(row, text) for text in row["answers"]])
        numbers["best"].append(reward(row, row["best"]))
        encoded = words(row["title"], row["text"], return_tensors="pt")
        numbers["pair"].append(float(pairs(**encoded).logits))
    return numbers


if __name__ == "__main__":
    model_file, row_file, out = map(Path, sys.argv[1:])
    result = main(json.loads(model_file.read_text()), json.loads(row_file.read_text()))
    out.write_text(json.dumps(result))
