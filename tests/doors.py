"""What saved pipelines of every kind are called with, and who opens them where attndiff is not installed."""

from pathlib import Path

CALLS = {
    "text": {"prompt": ["red apple, flat", "rocket"]},
    "class": {"class_labels": ["owl", "cat"]},
    "unconditional": {},
    "pretrained": {"prompt": ["blue heart", "cat face"]},
}
HELPER = Path(__file__).with_name("without_attndiff.py")
