"""The worker's half: votes in, a published adapter version out. It meets `playground` at the store and the adapter
folder, and `playground` never imports it.

Votes to pairs: preferences. The reward model: reward, reward_head, reward_validation, forecast. The policy and PPO:
policy, rollout, sft, ppo, ppo_math. The gate: gate, served. The round and its worker: round, round_start,
round_control, round_models, worker, erase, gpu, selftest, selftest_files. Simulated votes: annotators, simulate.
"""

from playground.system import quick_imports as quick_imports  # before any import of transformers
