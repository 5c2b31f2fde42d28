"""Emoji as rows of `words`: captions name a thing and a style, and rows are held out by what is known of them."""

from pathlib import Path

import pandas as pd

from of_words.images import Images

LEFT_OUT = ("openmoji_line",)  # drawings whose colours no caption names


def rows_of_emoji(folder: Path, out: Path, images: Images) -> None:
    """Write ``train.parquet`` and ``validation.parquet`` in ``out``.

    Held out are, as ``set``, one row each of things that are trained on in other styles, and as ``family`` those that
    the data hold out themselves, whose things no training row shows.

    Args:
        folder: Of ``train``, ``more_styles`` and ``validation.parquet``; columns are ``image``, ``caption``, ``style``
            and ``family``.
        out: Folder to make.
        images: Of which styles, and how many of each kind.
    """
    kinds = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "more_styles", "validation")}
    more = kinds["more_styles"]
    train = pd.concat([kinds["train"], more[~more["family"].isin(kinds["validation"]["family"])]])
    train, held_out = (
        rows[rows["style"].isin(images.styles) if images.styles else ~rows["style"].isin(LEFT_OUT)].copy()
        for rows in (train, kinds["validation"])
    )
    train = train.drop_duplicates(["caption", "style"]).reset_index(drop=True)
    drawn = train.groupby("caption")["style"].transform("size")
    of_known = train[drawn > images.known].sample(frac=1, random_state=0).drop_duplicates("caption")
    of_set = of_known.iloc[: images.things]
    train["held_out"], held_out["held_out"] = "", "family"
    parts = {
        "train": train.drop(of_set.index),
        "validation": pd.concat([of_set.assign(held_out="set"), held_out]),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        styles = rows["style"].str.replace("_", " ")
        rows = rows[["image", "held_out"]].assign(caption=rows["caption"] + ", " + styles, style=styles)
        rows.to_parquet(out / f"{name}.parquet", index=False)
