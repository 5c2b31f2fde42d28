"""What a model's own denoising of real images says of it; nothing is sampled."""
