"""Preferences to a reward model: a penalised linear head on a quantised trunk's features, and, as a setting, an fp32 LoRA below it.

Features are the mean over the reply's tokens of the hidden states after a shallow, a middle and a deep layer, and the log of its length: wording
shows in the shallow one, meaning in the deep one, and together they do better on few votes than choosing among them.
Owns how a reply becomes a score and how sure we are of it; knows nothing about policies or PPO.
"""

import json
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import binomtest

from playground import adapters, models
from training import preferences
from training.preferences import Preferences

DEPTHS = (0.1, 1 / 3, 2 / 3)  # of the layers read, as fractions of the blocks, where the setting names none
PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # ridge on the weights of unit-norm features
BATCH_TOKENS = 4096  # read at once, padding included: attention's memory grows with the square of a conversation's length
FOLDS = 5
NEWTON_STEPS = 50


class FeatureTrunk:
    """The quantised base up to the deepest layer read; turns a reply into D features, in `parts` of one layer each and a last one of its length."""

    def __init__(self, settings):
        self.model = models.load_trunk(settings, settings.reward_quantisation)
        stack = models.blocks(self.model)
        depths = [settings.reward_layer] if settings.reward_layer else DEPTHS
        self.layers = sorted({max(1, round(depth * len(stack))) for depth in depths})
        self._hidden = {}
        for layer in self.layers:
            stack[layer - 1].register_forward_hook(partial(self._keep, layer))
        del stack[self.layers[-1]:]
        self.batch = settings.reward_batch
        self.targets = models.linear_targets(self.model)
        self.parts = [self.model.get_input_embeddings().embedding_dim] * len(self.layers) + [1]
        self.peft = None

    def _keep(self, layer, _module, _inputs, output):
        self._hidden[layer] = output[0] if isinstance(output, tuple) else output

    def batch_features(self, replies):
        """Features of [(prompt ids, completion ids)]: (N, D) fp32, with gradients where enabled."""
        device = next(self.model.parameters()).device
        longest = max(len(p) + len(c) for p, c in replies)
        ids = torch.tensor([[*p, *c] + [0] * (longest - len(p) - len(c)) for p, c in replies], device=device)  # (N, L), right-padded
        mask = torch.tensor([[1] * (len(p) + len(c)) + [0] * (longest - len(p) - len(c)) for p, c in replies], device=device)
        pool = torch.tensor([[0] * len(p) + [1] * len(c) + [0] * (longest - len(p) - len(c)) for p, c in replies], device=device)
        self.model.base_model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0), use_cache=False)
        pool = pool[..., None].float()  # (N, L, 1)
        length = pool.sum(1).clamp(min=1)  # (N, 1)
        return torch.cat([*((self._hidden[layer].float() * pool).sum(1) / length for layer in self.layers), length.log()], -1)

    @torch.no_grad()
    def features(self, replies, on_batch=lambda done, total: None):
        """(N, D) fp32 on the CPU, in the order given; batches are of like lengths, which changes nothing but the time."""
        out = torch.zeros(len(replies), sum(self.parts))
        order = sorted(range(len(replies)), key=lambda i: sum(map(len, replies[i])))
        done = 0
        while done < len(order):
            rows = order[done:done + self.batch]
            while len(rows) > 1 and len(rows) * sum(map(len, replies[rows[-1]])) > BATCH_TOKENS:
                rows.pop()
            out[rows] = self.batch_features([replies[i] for i in rows]).cpu()
            done += len(rows)
            on_batch(done, len(order))
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

    weight: torch.Tensor  # (D,)
    centre: torch.Tensor  # (D,)
    scale: torch.Tensor  # (D,)
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

def fit_head(x, prefs, penalty):
    """Minimise weighted NLL + penalty/2·|w|² by Newton's method; the objective is convex. x (N, D) standardised. Returns (w (D,), log ν, θ)."""
    x, d = x.double(), x.shape[1]
    a, b, outcome, pair_weight = columns(prefs.pairs, torch.long, torch.long, torch.long, x.dtype)
    i, good, point_weight = columns(prefs.points, torch.long, x.dtype, x.dtype)
    # one row of each design is one natural parameter of the likelihood, linear in φ = (w, log ν, θ)
    pair_design = torch.zeros(len(prefs.pairs), 2, d + 2, dtype=x.dtype)  # (δ, log ν) of each pair
    pair_design[:, 0, :d], pair_design[:, 1, d] = x[a] - x[b], 1
    point_design = torch.zeros(len(prefs.points), d + 2, dtype=x.dtype)  # s − θ of each point
    point_design[:, :d], point_design[:, d + 1] = x[i], -1
    # weak priors keep ν and θ finite where no tie or no thumb speaks of them
    prior_mean, precision = torch.zeros(d + 2, dtype=x.dtype), torch.full((d + 2,), float(penalty), dtype=x.dtype)
    prior_mean[d], precision[d:] = -1, 0.2

    def objective(phi):
        delta, log_nu = (pair_design @ phi).unbind(-1)
        loss = (precision / 2 * (phi - prior_mean).square()).sum()
        loss += (pair_weight * preferences.pair_nll(delta / 2, -delta / 2, outcome, log_nu)).sum()
        return loss + (point_weight * preferences.point_nll(point_design @ phi, good, 0.0)).sum()

    def newton_step(phi):
        delta, log_nu = (pair_design @ phi).unbind(-1)
        slope, curvature = preferences.pair_derivatives(delta / 2, -delta / 2, outcome, log_nu)
        good_p = torch.sigmoid(point_design @ phi)
        gradient = precision * (phi - prior_mean) + point_design.T @ (point_weight * (good_p - good))
        gradient += torch.einsum("nip,ni->p", pair_design, pair_weight[:, None] * slope)
        hessian = torch.diag(precision) + point_design.T @ (point_design * (point_weight * good_p * (1 - good_p))[:, None])
        hessian += pair_design.flatten(0, 1).T @ (pair_weight[:, None, None] * curvature @ pair_design).flatten(0, 1)
        step = torch.cholesky_solve(gradient[:, None], torch.linalg.cholesky(hessian))[:, 0]
        return step, (gradient @ step).item()

    phi, value = prior_mean, objective(prior_mean)
    for _ in range(NEWTON_STEPS):
        step, decrement = newton_step(phi)
        if decrement < 1e-9:
            break
        while (new := objective(phi - step)) > value and step.norm() > 1e-9:
            step = step / 2
        phi, value = phi - step, new
    return phi[:d].float(), phi[d].item(), phi[d + 1].item()


def columns(rows, *dtypes):
    """The first columns of pairs or points as tensors (N,) of these types."""
    return [torch.tensor([row[i] for row in rows], dtype=dtype) for i, dtype in enumerate(dtypes)]


def standardiser(x, parts):
    """(centre, scale) that give a reply's standardised features about unit norm, of which every part has an equal share."""
    share = torch.cat([torch.full((size,), float(size * len(parts))) for size in parts]).sqrt()
    return x.mean(0), x.std(0).clamp(min=1e-6) * share


def evaluate(scores, log_nu, pairs):
    """(right, decided, summed NLL, pairs) of raw scores (N,) on pairs."""
    if not pairs:
        return 0.0, 0, 0.0, 0
    a, b, outcome = columns(pairs, *[torch.long] * 3)
    nll = preferences.pair_nll(scores[a], scores[b], outcome, torch.tensor(log_nu)).sum().item()
    right, decided = preferences.accuracy(scores[a].numpy(), scores[b].numpy(), outcome.numpy())
    return right, decided, nll, len(pairs)


def span(x, prefs):
    """Orthonormal basis (D, r) of what the votes compare, r at most their number. Every ridge-penalised fit lies in it, so a fit on x @ basis
    gives the same scores, and costs less where votes are few."""
    a, b, i = *columns(prefs.pairs, torch.long, torch.long), *columns(prefs.points, torch.long)
    return torch.linalg.svd(torch.cat([x[a] - x[b], x[i]]), full_matrices=False).Vh.T


def fitted_scores(x, prefs, penalty):
    """Raw scores (N,) of every reply under a head fitted on `prefs`, and log ν."""
    w, log_nu, _ = fit_head(x, prefs, penalty)
    return x @ w, log_nu


def cross_validate(prefs, seed, scores_from):
    """Out-of-fold (right, decided, mean NLL) over all pairs, folds of whole units; `scores_from(part)` gives (scores (N,), log ν)."""
    fold = preferences.folds([p[4] for p in prefs.pairs], FOLDS, seed)
    totals = np.zeros(4)
    for k in range(FOLDS):
        test, train = prefs.part(lambda unit, k=k: fold.get(unit) == k), prefs.part(lambda unit, k=k: fold.get(unit) != k)
        if test.pairs and train.pairs:
            totals += evaluate(*scores_from(train), test.pairs)
    right, decided, nll, n = totals
    return right, int(decided), nll / n if n else np.inf


def choose(x, prefs, seed):
    """The penalty of least cross-validated NLL; the strongest where no fold can be held out."""
    return min(PENALTIES, key=lambda penalty: cross_validate(prefs, seed, lambda part: fitted_scores(x, part, penalty))[2])


def wilson(right, n, confidence=0.95):
    """Wilson's interval of a proportion (Wilson 1927); (0, 1) without data."""
    if n == 0:
        return (0.0, 1.0)
    interval = binomtest(int(round(right)), n).proportion_ci(confidence, method="wilson")
    return (float(interval.low), float(interval.high))


# -- the whole fit

def fit(prefs, trunk, settings, on_batch=lambda done, total: None):
    """Fit the reward model; returns (RewardModel, Report).

    The penalty is chosen by cross-validated NLL. The reported figures choose again without the votes that they are measured on, so that what
    the choice overfits does not count as learning. The model returned is fitted on all votes, so that none is wasted.
    """
    x = trunk.features(prefs.replies, on_batch)
    centre, scale = standardiser(x, trunk.parts)
    x = (x - centre) / scale
    basis = span(x, prefs)
    z = x @ basis

    def chosen_scores(part):
        return fitted_scores(z, part, choose(z, part, settings.seed))

    right, decided, cv_nll = cross_validate(prefs, settings.seed, chosen_scores)
    held_right, held_decided, held_nll, held_n = evaluate(*chosen_scores(prefs.train()), prefs.held().pairs)

    penalty, epochs = choose(z, prefs, settings.seed), 0
    head = RewardModel(torch.zeros(len(centre)), centre, scale)
    if settings.reward_lora_rank:
        w, head.log_nu, _ = fit_head(z, prefs.train(), penalty)
        head.weight = basis @ w
        epochs, held_right, held_nll = fit_lora(head, prefs, trunk, settings, held_right, held_nll)
        if epochs:
            x = (trunk.features(prefs.replies) - centre) / scale
            basis = span(x, prefs)
    w, head.log_nu, head.threshold = fit_head(x @ basis, prefs, penalty)
    head.weight = basis @ w

    enough, reason = evidence(right, decided, settings.evidence_confidence)
    report = Report(
        pairs=len(prefs.pairs), penalty=penalty,
        cv_accuracy=right / max(decided, 1), cv_interval=wilson(right, decided), cv_nll=cv_nll,
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


def fit_lora(head, prefs, trunk, settings, right, best_nll):
    """Train an fp32 LoRA below the head's features on the training units, keeping the epoch with the best held-out NLL.

    `right` and `best_nll` are the frozen features' on the held-out pairs, to be beaten. Returns (epochs kept, right, NLL); 0 epochs means
    that the frozen features were better, and the LoRA is left at zero.
    """
    pairs, held = prefs.train().pairs, prefs.held().pairs
    parameters = trunk.attach_lora(settings.reward_lora_rank)
    weight = head.weight.clone().requires_grad_(True)
    log_nu = torch.tensor(head.log_nu)
    optimizer = torch.optim.AdamW([{"params": list(parameters.values()), "lr": 1e-4}, {"params": [weight], "lr": 1e-3}], eps=1e-5)
    zero = {k: v.detach().clone() for k, v in parameters.items()}
    best = (0, zero)
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
