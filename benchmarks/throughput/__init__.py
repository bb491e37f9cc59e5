"""How long a step takes beside the memory's own speed (`step`, `roofline`), and a GPT's whole training step
(`train_step`).
"""
