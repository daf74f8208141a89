"""`queues`: what is under way in each archive's queue."""

from ccat_data_transfer.cli import commands, options, output, preparation, selection


@commands.command("queues", example="ccat_data_transfer queues --site cologne")
@options.site
@options.as_json
def queues(site: str | None, as_json: bool) -> None:
    """Show the queues of the archives and what the database says is in them.

    Due operations wait for the manager, scheduled ones for a worker; delayed ones wait for their time.
    """
    from ccat_data_transfer import database, reports

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        found = reports.queues(session, selection.select(session, site).site)
    if as_json:
        output.write_json(found)
        return
    output.table(
        ("queue", "location", "due", "delayed", "scheduled", "in progress", "oldest scheduled"),
        [
            (
                each.queue,
                f"{each.site}/{each.location}",
                each.due,
                each.delayed,
                each.scheduled,
                each.in_progress,
                output.span(each.oldest_scheduled_seconds),
            )
            for each in found
        ],
        expendable=("location", "oldest scheduled", "delayed"),
    )
