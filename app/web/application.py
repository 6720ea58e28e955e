"""The application of the pages, mounted at the root of the service."""

from fastapi import Depends, FastAPI
from starlette.routing import BaseRoute, Route

from app.http.text_check import refuse_unstorable_text
from app.web import static_files
from app.web.errors import install_page_errors
from app.web.mount import PagesMount
from app.web.views import account, chat, checkpoints, deployments, jobs, keys, models, storage
from app.web.views.aliases import page as aliases
from app.web.views.aliases import promotion as alias_promotions
from app.web.views.comparisons import evaluations as evaluation_comparisons
from app.web.views.comparisons import runs as run_comparisons
from app.web.views.datasets import listing as dataset_list
from app.web.views.datasets import page as dataset_page
from app.web.views.datasets import upload as dataset_upload
from app.web.views.evaluations import listing as evaluation_list
from app.web.views.evaluations import page as evaluation_page
from app.web.views.hosts import clouds as cloud_hosts
from app.web.views.hosts import overview as hosts
from app.web.views.hosts import queue as host_queue
from app.web.views.new_job import page as new_job
from app.web.views.new_job import preflight as new_job_preflight
from app.web.views.openai_api import batches, fine_tuning
from app.web.views.openai_api import files as openai_files
from app.web.views.runs import page as runs
from app.web.views.runs import samples
from serving.http.limits import MAX_BODY_BYTES

VIEWS = (
    account,
    # Before `jobs`, whose pages of a job have one path below.
    new_job,
    new_job_preflight,
    jobs,
    checkpoints,
    runs,
    samples,
    evaluation_list,
    evaluation_page,
    evaluation_comparisons,
    run_comparisons,
    dataset_list,
    dataset_upload,
    dataset_page,
    models,
    chat,
    deployments,
    aliases,
    alias_promotions,
    hosts,
    host_queue,
    cloud_hosts,
    storage,
    keys,
    batches,
    fine_tuning,
    openai_files,
)


def create_pages() -> FastAPI:
    """Create the application of the pages."""
    app = FastAPI(
        openapi_url=None,
        dependencies=[Depends(refuse_unstorable_text)],
        max_body_size=MAX_BODY_BYTES,
        redirect_slashes=False,
    )
    install_page_errors(app)
    app.include_router(static_files.router)
    for view in VIEWS:
        app.include_router(view.router)
    return app


def list_page_routes() -> list[Route]:
    """Return the routes of all views and of the static files."""
    routes: list[BaseRoute] = [
        route for router in (static_files.router, *(view.router for view in VIEWS)) for route in router.routes
    ]
    return [route for route in routes if isinstance(route, Route)]


def mount_pages(app: FastAPI) -> None:
    """Mount the pages below every route that the service has."""
    pages = create_pages()
    app.router.routes.append(PagesMount(pages, [route.path for route in list_page_routes()]))
    app.state.pages = pages


def share_state(app: FastAPI) -> None:
    """Give the pages the gateway, and the event upon which their streams end."""
    if (pages := getattr(app.state, "pages", None)) is not None:
        pages.state.stopping = app.state.stopping
        pages.state.gateway = app.state.gateway
