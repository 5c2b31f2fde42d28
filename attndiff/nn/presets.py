"""Named sizes: arguments of the network and of the condition encoder that goes with it.

Parameters of network and encoder (with 2,048 text tokens), and operations of one forward of the network at 32 px with
3 channels, the keys and values of 24 condition tokens in the cache:

| name | network | encoder | GFLOP | for                         |
|------|---------|---------|-------|-----------------------------|
| tiny | 0.04 M  | 0.08 M  | 0.01  | tests                       |
| xs   | 9.2 M   | 1.7 M   | 0.97  | training on two CPU cores   |
| s    | 28.3 M  | 7.9 M   | 2.22  | one GPU; not trained yet    |
| b    | 120.2 M | 20.0 M  | 8.77  | several; not trained yet    |

xs attends globally up to 64 px and in windows beyond: on a CPU, global attention to 1,024 tokens would make 128 px cost
more than four times 64 px.
"""

# Without token_dropout a decoder recites the training caption that begins like what it has written: held-out loss of
# captions of sprites was then least after 300 steps of 64 images (0.45), and with 0.4 of it after 700 (0.34).
WRITING = {"dropout": 0.1, "token_dropout": 0.3}
ATTENDING = {"attention": "global", "cross_attention": True}

PRESETS = {
    "tiny": {
        "unet": {
            "levels": [{"width": 16, "depth": 1}, {"width": 32, "depth": 1, **ATTENDING}],
            "head_dim": 16,
            "embedding_dim": 32,
            "cross_attention_dim": 32,
            "pooled_dim": 32,
        },
        "transformer": {"hidden_size": 32, "num_layers": 1, "head_dim": 16, "value_size": 32, "value_layers": 1},
        "text_decoder": {"hidden_size": 32, "num_layers": 1, "head_dim": 16},
        "image_encoder": {"hidden_size": 32, "num_layers": 1, "head_dim": 16},
        "encoder": {"hidden_size": 32, "num_layers": 1, "head_dim": 16},
    },
    "xs": {
        "unet": {
            "levels": [
                {"width": 96, "depth": 2},
                {"width": 256, "depth": 2, **ATTENDING, "max_tokens": 256},
                {"width": 288, "depth": 2, **ATTENDING, "max_tokens": 256},
            ],
            "head_dim": 32,
            "embedding_dim": 256,
            "cross_attention_dim": 192,
            "pooled_dim": 192,
        },
        "transformer": {"hidden_size": 192, "num_layers": 4, "head_dim": 32, "value_size": 64, "value_layers": 1},
        "text_decoder": {"hidden_size": 128, "num_layers": 2, "head_dim": 32, **WRITING},
        "image_encoder": {"hidden_size": 128, "num_layers": 3, "head_dim": 32},
        "encoder": {"hidden_size": 192, "num_layers": 3, "head_dim": 32},
    },
    "s": {
        "unet": {
            "levels": [
                {"width": 128, "depth": 2},
                {"width": 320, "depth": 3, **ATTENDING},
                {"width": 512, "depth": 3, **ATTENDING},
            ],
            "head_dim": 64,
            "embedding_dim": 384,
            "cross_attention_dim": 384,
            "pooled_dim": 384,
        },
        "transformer": {"hidden_size": 384, "num_layers": 8, "head_dim": 64, "value_size": 128, "value_layers": 2},
        "text_decoder": {"hidden_size": 256, "num_layers": 3, "head_dim": 64, **WRITING},
        "image_encoder": {"hidden_size": 256, "num_layers": 4, "head_dim": 64},
        "encoder": {"hidden_size": 384, "num_layers": 4, "head_dim": 64},
    },
    "b": {
        "unet": {
            "levels": [
                {"width": 192, "depth": 3},
                {"width": 576, "depth": 4, **ATTENDING},
                {"width": 768, "depth": 6, **ATTENDING},
            ],
            "head_dim": 64,
            "embedding_dim": 768,
            "cross_attention_dim": 512,
            "pooled_dim": 512,
        },
        "transformer": {"hidden_size": 768, "num_layers": 12, "head_dim": 64, "value_size": 192, "value_layers": 3},
        "text_decoder": {"hidden_size": 512, "num_layers": 6, "head_dim": 64, **WRITING},
        "image_encoder": {"hidden_size": 512, "num_layers": 6, "head_dim": 64},
        "encoder": {"hidden_size": 512, "num_layers": 6, "head_dim": 64},
    },
}
