"""Run a job on a Ray cluster every night, over the partition of the run's date."""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

#: The cluster's dashboard address. The workers have the token in their environment.
CLUSTER = "http://ray-head.example.com:8265"

with DAG(
    dag_id="tokenmill_summaries",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow applies its own time zone
    catchup=False,
):
    BashOperator(
        task_id="summaries",
        # A retry attaches to the run that the first try started.
        retries=3,
        retry_delay=timedelta(minutes=1),
        bash_command=(
            "tokenmill submit /opt/airflow/jobs/summaries.yaml --follow"
            f" --address {CLUSTER}"
            " --set input.path=s3://corpus/dt={{ ds }}/"
            " --set output.path=s3://summaries/dt={{ ds }}/"
        ),
    )
