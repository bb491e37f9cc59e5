"""What a step costs the host: its time (`overhead`), over several ranks (`ranks`), what GreedyLR adds
(`control_cost`), and how often the device is waited for (`syncs`).
"""
