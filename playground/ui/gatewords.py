"""The gate's report in sentences: each check with its figure, its limit, and whether it passed. The checks themselves
are `training/gate.py`'s.
"""

from html import escape


def checks(report, config, w):
    """[(passed, sentence)] of a policy's gate report under its round's config. `not a <= b` everywhere: a figure that
    is no number never passes.
    """
    r, c = report, config
    low, high = r["gain_interval"]
    drift = r["length_new"] / r["length_live"] if r["length_live"] else float("inf")
    shortest = 1 / (c["length_factor"] if r["length_votes"][1] < 0 else c["length_drift"])
    longest = c["length_factor"] if r["length_votes"][0] > 0 else c["length_drift"]
    fall = r["canary_base"] - r["canary_new"]
    return [
        (
            low > 0,
            w(
                "Better: the reward rises by {gain} deviations [{low}, {high}] on {n} held-out prompts; the interval "
                "must lie above 0.",
                gain=f"{r['gain']:+.2f}",
                low=f"{low:+.2f}",
                high=f"{high:+.2f}",
                n=r["prompts"],
            ),
        ),
        (
            r["kl"] <= c["kl_budget"],
            w(
                "Near the base: KL {kl} nats a reply; at most {limit}.",
                kl=f"{r['kl']:.1f}",
                limit=f"{c['kl_budget']:g}",
            ),
        ),
        (
            shortest <= drift <= longest,
            w(
                "Length: {new} tokens against {live}; {low} to {high} times as long is accepted.",
                new=f"{r['length_new']:.0f}",
                live=f"{r['length_live']:.0f}",
                low=f"{shortest:.2f}",
                high=f"{longest:.2f}",
            ),
        ),
        (
            r["empty"] <= c["empty_replies"],
            w(
                "Not empty: {empty} of its replies are; at most {limit}.",
                empty=f"{r['empty']:.0%}",
                limit=f"{c['empty_replies']:.0%}",
            ),
        ),
        (
            r["repetition_new"] <= r["repetition_live"] + c["repetition_rise"],
            w(
                "No loops: {new} of its four-token runs are repeats, {live} of the live version's; at most {limit} "
                "more.",
                new=f"{r['repetition_new']:.0%}",
                live=f"{r['repetition_live']:.0%}",
                limit=f"{c['repetition_rise']:.0%}",
            ),
        ),
        (
            r["distinct_new"] >= c["distinct_share"] * r["distinct_live"],
            w(
                "Varied: {new} of its word pairs are distinct, {live} of the live version's; {limit} of that must be "
                "left.",
                new=f"{r['distinct_new']:.0%}",
                live=f"{r['distinct_live']:.0%}",
                limit=f"{c['distinct_share']:.0%}",
            ),
        ),
        (
            r["ended_new"] >= r["ended_live"] - c["ended_fall"],
            w(
                "Comes to an end: {new} of its replies do, {live} of the live version's; at most {limit} fewer.",
                new=f"{r['ended_new']:.0%}",
                live=f"{r['ended_live']:.0%}",
                limit=f"{c['ended_fall']:.0%}",
            ),
        ),
        (
            fall <= c["canary_fall"],
            w(
                "Still plain: plain replies are {fall} nats a token less likely than under the base; at most {limit}.",
                fall=f"{fall:.2f}",
                limit=f"{c['canary_fall']:g}",
            ),
        ),
    ]


def listed(report, config, w):
    """The checks as a list."""
    items = "".join(
        f'<li class="{"passed" if ok else "missed"}"><b '
        f'aria-label="{escape(w("passed") if ok else w("not passed"))}">{"✓" if ok else "✗"}</b> {escape(text)}</li>'
        for ok, text in checks(report, config, w)
    )
    return f'<ul class="checks">{items}</ul>'
