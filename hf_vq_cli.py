"""Entry point of `hf-vq`: outside the package, so that --help needs neither torch nor diffusers."""
