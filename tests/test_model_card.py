from kto_sweep.model_card import card_lines

COUNTS = {"rows": 2, "desirable": 1, "undesirable": 1, "tokens": 9}


def test_a_card_names_data_without_its_folders() -> None:
    about = {
        "model": {
            "name": "tiny",
            "fingerprint": "m",
            "quantization": "none",
            "dtype": "float32",
            "parameters": 1234,
        },
        "data": {"path": "data/a.jsonl, data/b.csv", "fingerprint": "d", "train": COUNTS, "held_out": COUNTS},
        "trial": {
            "dataset": ["data/a.jsonl", "/secret/b.csv"],
            "eval_dataset": "own/c.jsonl",
            "lora_targets": ["q"],
        },
        "started": "2026-01-01",
        "code": {"commit": "c0ffee", "dirty": True},
        "environment": {"gpu": "NVIDIA H200", "host": "secret-box"},
    }
    text = "\n".join(card_lines(about))
    assert "`a.jsonl, b.csv`, content hash `d`" in text
    assert "| `dataset` | a.jsonl, b.csv |" in text
    assert "| `eval_dataset` | c.jsonl |" in text
    assert "| code | commit `c0ffee`, with changes |" in text
    assert "| environment | gpu NVIDIA H200 |" in text
    assert "secret" not in text
