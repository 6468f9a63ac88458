"""Every night one run on a Ray cluster, over the partition of its date."""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

#: Where the connections of the cluster are; the token's variable is set for the workers.
CLUSTER = "http://ray-head.example.com:8265"

with DAG(
    dag_id="tokenmill_summaries",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow takes it in its own time zone
    catchup=False,
):
    BashOperator(
        task_id="summaries",
        # A second try finds the run of the first, and follows it.
        retries=3,
        retry_delay=timedelta(minutes=1),
        bash_command=(
            "tokenmill submit /opt/airflow/jobs/summaries.yaml --follow"
            f" --address {CLUSTER}"
            " --set input.path=s3://corpus/dt={{ ds }}/"
            " --set output.path=s3://summaries/dt={{ ds }}/"
        ),
    )
