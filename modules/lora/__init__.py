"""LoRA and its relatives: files that change a model a little, read in every layout and put onto the loaded models."""
