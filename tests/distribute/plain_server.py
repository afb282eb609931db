"""A server as a user of TensorFlow alone starts it: without the ops."""

import argparse
import json

import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("--cluster", type=json.loads)
parser.add_argument("--task")
args = parser.parse_args()
job, index = args.task.split(":")
cluster = tf.train.ClusterSpec(args.cluster)
tf.distribute.Server(cluster, job_name=job, task_index=int(index), protocol="grpc").join()
