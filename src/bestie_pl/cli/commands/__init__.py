"""Commands of ``bestie-pl`` that need no Trainer; each module has ``main(args) -> exit status``."""
