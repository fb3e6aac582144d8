"""Every export request is a partition: Dagster's UI shows requests where it shows partitions."""

import dagster as dg

PARTITIONS = "export_requests"
export_requests = dg.DynamicPartitionsDefinition(name=PARTITIONS)

#: On runs that the sensor asked for. Which attempt of its request a run is.
ATTEMPT_TAG = "export_pipeline/attempt"
PARTITION_TAG = "dagster/partition"
