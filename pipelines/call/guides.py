"""Which guides go with a network."""

from diffusers.models.modeling_utils import ModelMixin

READ = ("vocab_size", "max_length", "num_classes", "context_dim")  # what decides the inputs of a condition encoder


def check_guide(guide: ModelMixin | None, guide_encoder: ModelMixin | None, encoder: ModelMixin | None) -> None:
    """Refuse a guide that could not make sense of its condition.

    Args:
        guide: The network to lead away from.
        guide_encoder: Its own condition encoder.
        encoder: That of the network which is led.

    Raises:
        ValueError: If the guide's encoder is missing, not needed, or reads other inputs than the network's.
    """
    if guide is None:
        if guide_encoder is not None:
            raise ValueError("guide_encoder: there is no guide to encode for; give its network as guide, too.")
        return
    wanted = guide.config.cross_attention_dim
    if guide_encoder is None:
        given = None if encoder is None else encoder.config.hidden_size
        if None not in (wanted, given) and wanted != given:
            raise ValueError(
                f"guide: it attends to tokens of {wanted} channels, and condition_encoder makes them of {given}; give "
                "the encoder that it was trained with as guide_encoder."
            )
        return
    if wanted is None:
        raise ValueError("guide_encoder: the guide is unconditional; leave its encoder out.")
    if encoder is None:
        raise ValueError("guide_encoder: this pipeline has no condition_encoder; leave out both, and give embeds.")
    for setting in READ:
        theirs, ours = guide_encoder.config[setting], encoder.config[setting]
        if theirs != ours:
            raise ValueError(
                f"guide_encoder: its {setting} is {theirs}, and that of condition_encoder {ours}; take a guide that "
                "reads the same prompts, such as an earlier snapshot of the model."
            )
