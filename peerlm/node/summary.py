"""A node's state as it is shown: `Summary`, gathered from the two halves of the node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from peerlm import __version__
from peerlm.data.records import parts_of
from peerlm.membership.address_book import address_of
from peerlm.membership.member import Member, State
from peerlm.model.stages import KINDS
from peerlm.node.company import Company
from peerlm.node.lately import LATELY_S, PARTNERS_MAX, believed, named
from peerlm.node.placing import Placing, said_of
from peerlm.node.reasons import reason_of, trouble_with
from peerlm.node.shortage import jobs_stuck, wrong
from peerlm.node.status import (
    MemberSummary,
    PlacementSummary,
    StageSummary,
    StoreSummary,
    Summary,
    TextSummary,
)
from peerlm.node.storing import Storing
from peerlm.node.work import Work
from peerlm.types import Instant, PeerId, short
from peerlm.wire.message import Vitals

TEXTS_MAX = 1 << 20
"""More than go through any node."""


def summarise(
    company: Company,
    work: Work,
    placing: Placing | None,
    storing: Storing,
    jobs: Sequence[Mapping[str, Any]],
    own: Vitals,
    rate: float,
    parameters: int,
    now: Instant,
) -> Summary:
    """`jobs`: of `Jobs.standing`; `own`: this node's vitals as it would publish them; `rate`: the swarm's, in tokens/s; `parameters`: of the model."""
    me, ledger, worker = company.me, company.ledger, work.worker
    totals = work.exchanges.outcomes.totals()
    progress = work.acquisition.progress(now)
    record = company.membership.record
    members = tuple(_members(company, work, own, now))
    others = sum(m.state == State.ALIVE.name.lower() and m.peer != me for m in members)
    return Summary(
        peer=me,
        run_id=company.gate.run_id,
        run_name=company.plan.plan.run.name,
        phase=work.phase,
        phase_reason=reason_of(work),
        address=address_of(record.host, company.ports.introduction),
        reached=company.dial_back.reached,
        epoch=company.membership.incarnation[0],
        plan_revision=company.plan.revision,
        plan_hash=company.plan.plan_hash,
        continues=company.plan.plan.run.continues,
        token_budget=company.plan.plan.run.token_budget,
        tokens=ledger.tokens_of(me),
        swarm_tokens=ledger.total(),
        swarm_tokens_per_s=rate,
        loss=worker.loss,
        val_loss=worker.val_loss,
        consensus_distance=work.exchanges.outcomes.distance(),
        participating=work.is_participating(now),
        members=members,
        exchanges={
            "ok": totals.initiated_ok + totals.served_ok,
            "busy": totals.busy,
            "refused": totals.refused,
            "timed_out": totals.timed_out,
        },
        exchange_reasons=totals.reasons,
        clip_booked=totals.clip_booked,
        bytes_sent=totals.bytes_sent,
        bytes_received=totals.bytes_received,
        bytes_allreduce=_bytes_allreduce(work, parameters),
        stages=(work.hosting.first, work.hosting.last, work.hosting.count),
        lacking=tuple(work.lacking()),
        stream_lost=worker.stream_lost,
        stream_bytes=worker.stream_bytes,
        inner_steps=work.steering.tempo.inner_steps,
        line_use=work.steering.tempo.use,
        line_bytes_s=work.steering.tempo.line_bytes_s,
        worker_state=worker.supervision.state,
        worker_device=worker.supervision.device,
        worker_device_wanted=work.settings.train.device,
        worker_threads=worker.supervision.threads,
        worker_restarts=worker.supervision.restarts,
        worker_last_error=worker.supervision.last_error,
        worker_silent_s=worker.supervision.silent_s(now),
        tokens_per_s=worker.tokens_per_s,
        nonfinite_steps=worker.nonfinite_steps,
        batch_tokens=work.steering.tokens_per_step(),
        noise_scale=worker.noise_scale,
        data_pass=work.coverage.number,
        data_position=work.coverage.position,
        texts=_texts(work),
        shards=work.reading.shards,
        arriving=work.reading.arriving,
        fetched_bytes=progress.bytes_done,
        fetch_total_bytes=progress.bytes_total,
        snapshot_number=work.snapshots.number,
        snapshot_tokens=work.snapshots.tokens,
        snapshot_error=work.snapshots.error,
        model_dir=work.model_dir,
        dial_errors={a: e.last_error for a, e in company.contacts.errors().items()},
        refused_plans={short(p): line for p, line in company.refused_plans.items()},
        shut_out=company.introductions.shut_out,
        notes=(progress.trouble,) if progress.trouble else (),
        placement=_placement(placing, now) if placing else PlacementSummary(),
        store=_store(
            company,
            storing,
            jobs,
            others,
            storing.hedged_bytes + work.acquisition.hedged_bytes,
            now,
        ),
    )


def _texts(work: Work) -> tuple[TextSummary, ...]:
    """What the plan names, with what is known of it; the worker may be at what an older plan named."""
    texts, positions = work.coverage.texts, work.coverage.positions()
    parts = parts_of(work.plan)
    if len(texts) < len(parts):  # this node has no text of its own
        parts = tuple(part for part in parts if not part.is_own)
    total = sum(part.weight for part in parts)
    return tuple(
        TextSummary(part.name, part.weight / total, *at, val_loss=work.worker.val_loss_of(text))
        for part, text, at in zip(parts, texts, positions, strict=True)
    )


def _store(
    company: Company,
    storing: Storing,
    jobs: Sequence[Mapping[str, Any]],
    others: int,
    hedged_bytes: int,
    now: Instant,
) -> StoreSummary:
    """`others`: live members besides this one."""
    said = [company.vitals_of(peer) for peer in company.stores()]
    standing, names = storing.standing(), storing.register.living()
    lacking = standing.catalog.lacking + standing.unread
    found = StoreSummary(
        hedged_bytes=hedged_bytes,
        capacity=standing.capacity,
        used=standing.used,
        names=standing.names,
        lacking=lacking,
        swarm_lacking=lacking + sum(vitals.store_lacking for vitals in said if vitals),
        is_full=standing.full,
        lacking_s=storing.shortage.lasts_s(now),
        urgent=standing.catalog.urgent,
        pulling=standing.pulling,
        unfound=standing.unfound,
        lost=storing.lost_here,
        names_refused=storing.register.refused.total(),
        refused=storing.register.refused.line(now),
        trouble=standing.trouble,
        nodes=sum(is_live for *_, is_live in standing.nodes),
        replicas_wanted=max((name.record.replicas for name in names), default=0),
        jobs_stuck=jobs_stuck(jobs),
    )
    return replace(found, wrong=tuple(wrong(found, others)))


def _placement(placing: Placing, now: Instant) -> PlacementSummary:
    progress = placing.stock.progress(now)
    return PlacementSummary(
        is_auto=placing.is_auto,
        target=said_of(placing.target),
        why=placing.why,
        copies=tuple(s for s in range(placing.count) if placing.stock.has_copy(s)),
        loaded_bytes=progress.bytes_done,
        load_total_bytes=progress.bytes_total,
        stages=tuple(
            StageSummary(stage.training.host, stage.training.device or 0, stage.flops)
            for stage in placing.cut
        ),
    )


def _members(company: Company, work: Work, own: Vitals, now: Instant) -> list[MemberSummary]:
    """Everybody, this node included, sorted by id."""
    me, members = company.me, company.membership.members()
    ours = _summarise(
        me,
        company.address,
        "alive",
        own,
        company.ledger.tokens_of(me),
        True,
        None,
        __version__,
        me in work.texts.behind,
        None,
    )
    mixed_with = tuple(work.exchanges.outcomes.lately(now, LATELY_S, PARTNERS_MAX))
    names = named((me, *members))
    others = [_other(company, work, member, names, now) for member in members.values()]
    return sorted([replace(ours, mixed_with=mixed_with), *others], key=lambda m: m.peer)


def _other(
    company: Company, work: Work, m: Member, names: Mapping[bytes, PeerId], now: Instant
) -> MemberSummary:
    """`names`: of `lately.named`, everybody."""
    vitals = company.vitals_of(m.peer) if m.is_live else None
    met_s_ago = work.exchanges.outcomes.met(m.peer, now)
    found = _summarise(
        m.peer,
        address_of(m.record.host, m.record.intro_port),
        State(m.state).name.lower(),
        vitals,
        company.ledger.tokens_of(m.peer),
        company.contacts.is_linked(m.peer),
        met_s_ago,
        company.contacts.software(m.peer),
        m.peer in work.texts.behind,
        company.membership.delay_to(m.peer),
    )
    return replace(
        found,
        state_s=max(0.0, now - m.since),
        reason=trouble_with(company, work, m, now),
        mixed_with=believed(vitals, names, company.me, met_s_ago) if vitals else (),
    )


def _summarise(
    peer: PeerId,
    address: str,
    state: str,
    v: Vitals | None,
    tokens: int,
    linked: bool,
    mixed_s_ago: float | None,
    software: str,
    is_behind: bool,
    away_s: float | None,
) -> MemberSummary:
    return MemberSummary(
        peer=peer,
        address=address,
        state=state,
        phase=v.phase if v else "",
        participating=v.participating if v else False,
        active=v.active if v else False,
        tokens=tokens,
        tokens_per_s=v.tokens_per_s if v else 0.0,
        loss=v.loss if v else None,
        val_loss=v.val_loss if v else None,
        distance=v.distance if v else None,
        linked=linked,
        mixed_s_ago=mixed_s_ago,
        stages=(v.first_stage, v.last_stage) if v else (0, 0),
        software=software,
        is_auto=v.is_auto if v else False,
        target=(v.target_first, v.target_last) if v else (0, 0),
        memory_host=v.memory_host if v else 0,
        memory_device=v.memory_device if v else None,
        flops_s=v.flops_s if v else 0.0,
        line_bytes_s=v.line_bytes_s if v else 0.0,
        is_draining=v.is_draining if v else False,
        weights_tokens=v.weights_tokens if v else None,
        is_behind=is_behind,
        preprocess=_preprocess(v) if v else "no",
        delay_s=v.delay_us / 1e6 if v else 0.0,
        away_s=away_s,
        paces=_paces(v) if v else {},
        page=_page(address, v.page_port) if v else "",
        busy=min(v.busy, 10) / 10 if v and v.busy is not None else None,
        texts=min(v.texts, TEXTS_MAX) if v else 0,
    )


def _page(address: str, port: int) -> str:
    """`address`: at which the node is dialled; empty: not at all."""
    host = address.removeprefix("tcp://").rpartition(":")[0]
    return f"http://{host}:{port}/" if host and port else ""


def _preprocess(v: Vitals) -> str:
    if v.is_preprocessing:
        return "at work"
    return "able" if v.may_preprocess else "no"


def _paces(v: Vitals) -> dict[str, int]:
    if len(v.paces) != len(KINDS):
        return {}
    return {kind: pace for kind, pace in zip(KINDS, v.paces, strict=True) if pace}


def _bytes_allreduce(work: Work, parameters: int) -> int:
    """Ring all-reduce moves 2 (n−1)/n · 4 bytes a parameter each step, out of every node."""
    members = 1 + len(work.seen.trainers)
    steps = work.worker.tokens // work.steering.tokens_per_step()
    return int(steps * parameters * 8 * (members - 1) / members)
