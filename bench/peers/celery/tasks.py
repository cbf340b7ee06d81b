"""The benchmark's Celery application: one task, which posts the text it is given to a URL."""

import os

import urllib3
from celery import Celery
from kombu import Exchange, Queue

QUEUE = os.environ["BENCH_QUEUE"]
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "16"))
URL = os.environ.get("BENCH_URL", "")
HEADERS = {"content-type": "application/json"}

app = Celery("bench", broker=os.environ["BENCH_REDIS"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 3600},
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    task_default_queue=QUEUE,
    task_queues=[Queue(QUEUE, Exchange(QUEUE), routing_key=QUEUE)],
    task_default_routing_key=QUEUE,
    worker_prefetch_multiplier=int(os.environ.get("BENCH_PREFETCH", "64")),
    worker_send_task_events=False,
    worker_enable_remote_control=False,
)

# One for each process: the threads of a worker share it, and so the connections stay open from task to task.
http = urllib3.PoolManager(maxsize=CONCURRENCY, block=True, retries=False)


@app.task(name="bench.post", bind=True, max_retries=None, default_retry_delay=1)
def post(self, body: str) -> None:
    """One job: it is done when a 200 was read to its end. Until then it is tried again."""
    try:
        response = http.request("POST", URL, body=body.encode(), headers=HEADERS)
    except urllib3.exceptions.HTTPError as error:
        raise self.retry(exc=error)
    if response.status != 200:
        raise self.retry(exc=RuntimeError(f"status {response.status}"))
