"""Networks that autoencoders and priors share; they know of neither."""
