"""Preferences to a reward model: a penalised linear head on a quantised trunk's features, and, as a setting, an fp32 LoRA below it.

Features are the mean over the reply's tokens of a middle layer's hidden states: on a hundred votes they beat a LoRA with a last-token head.
Owns how a reply becomes a score and how sure we are of it; knows nothing about policies or PPO.
"""

import json
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.optimize import minimize
from scipy.stats import binomtest

from playground import adapters, models
from training import preferences
from training.preferences import Preferences

PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)  # ridge on the weights of unit-norm features; chosen by cross-validated NLL
FOLDS = 5


class FeatureTrunk:
    """The quantised base up to block `layer`; turns replies into feature vectors."""

    def __init__(self, settings):
        self.model = models.load_trunk(settings, settings.reward_quantisation)
        stack = models.blocks(self.model)
        self.layer = max(1, round(settings.reward_layer * len(stack)))
        del stack[self.layer:]
        stack[-1].register_forward_hook(self._keep)
        self.batch = settings.reward_batch
        self.targets = models.linear_targets(self.model)
        self.width = self.model.get_input_embeddings().embedding_dim
        self.peft = None

    def _keep(self, _module, _inputs, output):
        self._hidden = output[0] if isinstance(output, tuple) else output

    def batch_features(self, replies):
        """Mean hidden state over each reply's tokens: [(prompt ids, completion ids)] -> (N, d) fp32, with gradients where enabled."""
        device = next(self.model.parameters()).device
        longest = max(len(p) + len(c) for p, c in replies)
        ids = torch.tensor([[*p, *c] + [0] * (longest - len(p) - len(c)) for p, c in replies], device=device)  # (N, L), right-padded
        mask = torch.tensor([[1] * (len(p) + len(c)) + [0] * (longest - len(p) - len(c)) for p, c in replies], device=device)
        pool = torch.tensor([[0] * len(p) + [1] * len(c) + [0] * (longest - len(p) - len(c)) for p, c in replies], device=device)
        self.model.base_model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=False)
        pool = pool[..., None].float()  # (N, L, 1)
        return (self._hidden.float() * pool).sum(1) / pool.sum(1).clamp(min=1)

    @torch.no_grad()
    def features(self, replies):
        """(N, d) fp32 on the CPU, in the order given; batches are of like lengths, which changes nothing but the time."""
        out = torch.zeros(len(replies), self.width)
        order = sorted(range(len(replies)), key=lambda i: sum(map(len, replies[i])))
        for start in range(0, len(order), self.batch):
            rows = order[start:start + self.batch]
            out[rows] = self.batch_features([replies[i] for i in rows]).cpu()
        return out

    def attach_lora(self, rank, tensors=None):
        """Put an fp32 LoRA below the features (zero, or with the given tensors); returns its parameters."""
        if self.peft is None:
            self.peft = models.with_lora(self.model, rank=rank, alpha=2 * rank, targets=self.targets)
        parameters = models.lora_parameters(self.peft)
        if tensors is not None:
            adapters.copy_strictly(tensors, parameters)
        return parameters


@dataclass
class RewardModel:
    """A fitted head. raw score = w·(x − centre)/scale; reward = (raw − shift)/spread, which has mean 0 and deviation 1 on the reference's replies."""

    weight: torch.Tensor  # (d,)
    centre: torch.Tensor  # (d,)
    scale: torch.Tensor  # (d,)
    log_nu: float = -1.0
    threshold: float = 0.0
    shift: float = 0.0
    spread: float = 1.0
    lora: dict = field(default_factory=dict)

    def raw(self, features):
        """Scores (N,) in the units of the likelihood."""
        return ((features - self.centre) / self.scale) @ self.weight

    def reward(self, features):
        """Standardised scores (N,)."""
        return (self.raw(features) - self.shift) / self.spread

    def standardise(self, reference_features):
        """Set shift and spread from replies of the reference policy; after every fit, or β changes its meaning."""
        raw = self.raw(reference_features)
        self.shift, self.spread = raw.mean().item(), max(raw.std().item(), 1e-6)

    def save(self, path):
        numbers = {k: getattr(self, k) for k in ("log_nu", "threshold", "shift", "spread")}
        tensors = {"weight": self.weight, "centre": self.centre, "scale": self.scale, **{f"lora/{k}": v for k, v in self.lora.items()}}
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata={"numbers": json.dumps(numbers)})

    @classmethod
    def load(cls, path):
        with safe_open(path, "pt") as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
            numbers = json.loads(file.metadata()["numbers"])
        lora = {k.removeprefix("lora/"): tensors.pop(k) for k in list(tensors) if k.startswith("lora/")}
        return cls(**tensors, **numbers, lora=lora)


@dataclass
class Report:
    """What a fit is worth. Cross-validated figures are over all votes, held-out ones over the split; `interval` is Wilson's."""

    pairs: int
    penalty: float
    cv_accuracy: float
    cv_interval: tuple
    cv_nll: float
    heldout_pairs: int
    heldout_accuracy: float | None
    heldout_interval: tuple | None
    heldout_nll: float | None
    enough: bool
    reason: str | None
    lora_epochs: int = 0


# -- the head

def fit_head(x, pairs, points, penalty):
    """Minimise weighted NLL + penalty/2·|w|² by L-BFGS. x (N, d) standardised. Returns (w (d,), log ν, θ)."""
    x = x.double()
    a, b, outcome, pair_weight = (torch.tensor([p[i] for p in pairs]) for i in range(4))
    i, good, point_weight = (torch.tensor([p[i] for p in points]) for i in range(3))

    def objective(flat):
        flat = torch.tensor(flat, requires_grad=True)
        w, log_nu, theta = flat[:-2], flat[-2], flat[-1]
        scores = x @ w
        # weak priors keep ν and θ finite where no tie or no thumb speaks of them
        loss = penalty / 2 * w.square().sum() + 0.1 * (log_nu + 1).square() + 0.1 * theta.square()
        if pairs:
            loss = loss + (pair_weight * preferences.pair_nll(scores[a], scores[b], outcome, log_nu)).sum()
        if points:
            loss = loss + (point_weight * preferences.point_nll(scores[i], good, theta)).sum()
        loss.backward()
        return loss.item(), flat.grad.numpy()

    start = np.zeros(x.shape[1] + 2)
    start[-2] = -1.0
    best = torch.tensor(minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x)
    return best[:-2].float(), best[-2].item(), best[-1].item()


def standardiser(x):
    """(centre, scale) that give features deviation 1/√d each, so that a reply has about unit norm."""
    return x.mean(0), x.std(0).clamp(min=1e-6) * x.shape[1] ** 0.5


def evaluate(scores, log_nu, pairs):
    """(right, decided, summed NLL, pairs) of raw scores (N,) on pairs."""
    if not pairs:
        return 0.0, 0, 0.0, 0
    a, b, outcome = (torch.tensor([p[i] for p in pairs]) for i in range(3))
    nll = preferences.pair_nll(scores[a], scores[b], outcome, torch.tensor(log_nu)).sum().item()
    right, decided = preferences.accuracy(scores[a].numpy(), scores[b].numpy(), outcome.numpy())
    return right, decided, nll, len(pairs)


def cross_validate(x, prefs: Preferences, penalty, seed):
    """Out-of-fold (right, decided, mean NLL) over all pairs, folds of whole units."""
    fold = preferences.folds([p[4] for p in prefs.pairs], FOLDS, seed)
    totals = np.zeros(4)
    for k in range(FOLDS):
        test = [p for p in prefs.pairs if fold[p[4]] == k]
        pairs, points = prefs.part(lambda unit, k=k: fold.get(unit) != k)
        if test and pairs:
            w, log_nu, _ = fit_head(x, pairs, points, penalty)
            totals += evaluate(x @ w, log_nu, test)
    right, decided, nll, n = totals
    return right, int(decided), nll / max(n, 1)


def wilson(right, n, confidence=0.95):
    """Wilson's interval of a proportion (Wilson 1927); (0, 1) without data."""
    if n == 0:
        return (0.0, 1.0)
    interval = binomtest(int(round(right)), n).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))


# -- the whole fit

def fit(prefs, trunk, settings):
    """Fit the reward model; returns (RewardModel, Report). The penalty is chosen by cross-validation, the reported held-out figures come
    from a fit without the held-out units, and the model returned is fitted on all votes, so that none is wasted."""
    x = trunk.features(prefs.replies)
    centre, scale = standardiser(x)
    z = (x - centre) / scale
    tried = {penalty: cross_validate(z, prefs, penalty, settings.seed) for penalty in PENALTIES}
    penalty = min(tried, key=lambda p: tried[p][2])
    right, decided, cv_nll = tried[penalty]

    w, log_nu, theta = fit_head(z, *prefs.train(), penalty)
    held = prefs.held()[0]
    held_right, held_decided, held_nll, held_n = evaluate(z @ w, log_nu, held)
    head = RewardModel(w, centre, scale, log_nu, theta)
    epochs = 0
    if settings.reward_lora_rank:
        epochs, held_right, held_nll = fit_lora(head, prefs, trunk, settings, held_nll)
        if epochs:
            z = (trunk.features(prefs.replies) - centre) / scale
    head.weight, head.log_nu, head.threshold = fit_head(z, prefs.pairs, prefs.points, penalty)

    enough, reason = evidence(right, decided, settings.evidence_confidence)
    report = Report(
        pairs=len(prefs.pairs), penalty=penalty, cv_accuracy=right / max(decided, 1), cv_interval=wilson(right, decided), cv_nll=cv_nll,
        heldout_pairs=held_n, heldout_accuracy=held_right / held_decided if held_decided else None,
        heldout_interval=wilson(held_right, held_decided) if held_decided else None,
        heldout_nll=held_nll / held_n if held_n else None, enough=enough, reason=reason, lora_epochs=epochs)
    return head, report


def evidence(right, decided, confidence):
    """(enough, reason): whether the accuracy's interval clears chance; else a sentence with about how many more votes it would take."""
    if decided == 0:
        return False, "Not enough evidence yet: no vote says which reply is better. Vote A or B on more replies."
    if not confidence:
        return True, None
    accuracy, (low, high) = right / decided, wilson(right, decided, confidence)
    if low > 0.5:
        return True, None
    needed = next((n for n in range(decided + 1, 20 * decided + 200) if wilson(accuracy * n, n, confidence)[0] > 0.5), None)
    more = f"about {needed - decided} more at this agreement rate" if needed else "the votes do not agree with each other so far"
    return False, f"Not enough evidence yet: {decided} votes, cross-validated accuracy {accuracy:.2f} [{low:.2f}, {high:.2f}]; {more}."


def fit_lora(head, prefs, trunk, settings, best_nll):
    """Train an fp32 LoRA below the head's features on the training units, keeping the epoch with the best held-out NLL.

    Returns (epochs kept, right, NLL on held-out pairs); 0 epochs means the frozen features were better, and the LoRA is left at zero.
    """
    pairs, _ = prefs.train()
    held = prefs.held()[0]
    parameters = trunk.attach_lora(settings.reward_lora_rank)
    weight = head.weight.clone().requires_grad_(True)
    log_nu = torch.tensor(head.log_nu)
    optimizer = torch.optim.AdamW([{"params": list(parameters.values()), "lr": 1e-4}, {"params": [weight], "lr": 1e-3}], eps=1e-5)
    zero = {k: v.detach().clone() for k, v in parameters.items()}
    best, right = (0, zero), evaluate(head.raw(trunk.features(prefs.replies)), head.log_nu, held)[0]
    order = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.reward_lora_epochs):
        for rows in torch.randperm(len(pairs), generator=order).split(max(1, settings.reward_batch // 2)):
            chosen = [pairs[i] for i in rows]
            features = trunk.batch_features([prefs.replies[p[side]] for p in chosen for side in (0, 1)]).cpu()
            scores = ((features - head.centre) / head.scale) @ weight
            outcome, case_weight = torch.tensor([p[2] for p in chosen]), torch.tensor([p[3] for p in chosen])
            loss = (case_weight * preferences.pair_nll(scores[0::2], scores[1::2], outcome, log_nu)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
        scores = ((trunk.features(prefs.replies) - head.centre) / head.scale) @ weight.detach()
        epoch_right, _, nll, _ = evaluate(scores, head.log_nu, held)
        if held and nll < best_nll:
            best_nll, right = nll, epoch_right
            best = (epoch + 1, {k: v.detach().clone() for k, v in parameters.items()})
    adapters.copy_strictly(best[1], parameters)
    head.lora = best[1] if best[0] else {}
    return best[0], right, best_nll
