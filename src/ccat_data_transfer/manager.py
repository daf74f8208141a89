"""The manager's pass: create, rescue, schedule; commit; then send. Any number of managers may run it at once."""

import logging
from dataclasses import dataclass

from ccat_data_transfer import database, dispatch, logs, operations, settings, topology

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass of the manager did."""

    created: int
    rescued: int
    scheduled: int
    unsent: int

    @property
    def did_anything(self) -> bool:
        """Whether there was work, so that more is likely to follow soon."""
        return bool(self.created or self.rescued or self.scheduled > self.unsent)


def site_id_of(site_name: str | None) -> int | None:
    """The id of a site by short name or name, None for None (all sites); raises `UnknownNameError`."""
    if site_name is None:
        return None
    with database.session_scope(read_only=True) as session:
        return topology.find_site(session, site_name).id


def archive_ids(site_id: int | None, *, here: bool = False) -> list[int]:
    """Ids of the active archives of a site, or of all sites; with `here` of those that this host can serve."""
    with database.session_scope(read_only=True) as session:
        return operations.archive_ids(session, site_id, here=here)


def run_pass(site_id: int | None) -> Pass:
    """Create, rescue, schedule; commit; then send."""
    limit, considered, created = settings.get().create_limit, 0, 0
    while considered < limit:
        with database.session_scope() as session:
            seen, new = operations.create(session, site_id=site_id)
        considered, created = considered + seen, created + new
        if not seen:
            break
    with database.session_scope() as session:
        rescued = operations.rescue(session, site_id=site_id)
    scheduled, unsent = _schedule_and_send(site_id) if settings.get().uses_broker else (0, 0)
    done = Pass(created, len(rescued), scheduled, unsent)
    log.log(
        logging.INFO if done.did_anything else logging.DEBUG,
        "manager_pass",
        created=created,
        rescued=len(rescued),
        scheduled=scheduled,
        unsent=unsent,
    )
    return done


def _schedule_and_send(site_id: int | None) -> tuple[int, int]:
    """Location by location: commit, then send; returns how many were scheduled, and how many of them not sent.

    A broker that refuses is not asked again in this pass, and nothing more is scheduled for it.
    """
    scheduled = 0
    for location_id in archive_ids(site_id):
        with database.session_scope() as session:
            dispatches = operations.schedule(session, location_id)
        scheduled += len(dispatches)
        unsent = dispatch.send(dispatches)
        if unsent:
            with database.session_scope() as session:
                operations.not_sent(session, unsent)
            return scheduled, len(unsent)
    return scheduled, 0
