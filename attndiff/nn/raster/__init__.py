"""Images as sequences of values, and the Transformer that draws them one value after another."""
