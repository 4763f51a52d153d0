"""Other engines on the workload of benchmarks/workload.py, one module each.

    python -m benchmarks.peers.NAME WORKLOAD.json MODEL     in an environment of that engine

Such an environment has nothing of urial_engine: a peer reads the texts from the file that race.py
writes, and imports only its engine and common.py. Its one line of JSON has the figures' names of
workload.py. NAME.txt lists every distribution of the environment with its version.
"""
