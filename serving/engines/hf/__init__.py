"""The engine `hf`: models of transformers with adapters of PEFT."""
