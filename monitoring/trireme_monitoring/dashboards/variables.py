"""The variables of the dashboards. `promql.shown` narrows queries down by them."""

from trireme_monitoring.board import Variable
from trireme_monitoring.promql import series
from trireme_operator import metrics as operator

IN_NAMESPACE = 'namespace=~"$namespace"'

NAMESPACE = Variable("namespace", "Namespace", series(operator.JOB_STATE), "namespace")
JOBS = Variable("job", "Job", series(operator.JOB_STATE, IN_NAMESPACE), "job_name")
KIND = Variable("kind", "Kind", series(operator.JOB_STATE, IN_NAMESPACE, 'job_name=~"$job"'), "kind")
"""Jobs of two kinds may have one name."""
SERVICES = Variable("service", "Service", series(operator.SERVICE_STATE, IN_NAMESPACE), "service_name")

NAMESPACE_OF_SERVICES = Variable("namespace", "Namespace", series(operator.SERVICE_STATE), "namespace")
MODELS = Variable("job", "Model of job", series(operator.SERVICE_INFO, IN_NAMESPACE), "model", regex="/.*Job\\/(.*)/")
"""The jobs whose models are served."""
SERVICES_OF_MODELS = Variable(
    "service",
    "Service",
    series(operator.SERVICE_INFO, IN_NAMESPACE, 'model=~"(.*/)?$job"'),
    "service_name",
    any_value=False,
)
INSTANCE = Variable("instance", "Replica of the operator", series(operator.LEADER), "instance")


def of_one_job(*kinds: str) -> list[Variable]:
    """To look at one job, of certain kinds or of any."""
    matchers = (f'kind=~"{"|".join(kinds)}"',) if kinds else ()
    jobs = series(operator.JOB_STATE, IN_NAMESPACE, *matchers)
    return [
        Variable("namespace", "Namespace", series(operator.JOB_STATE, *matchers), "namespace", many=False),
        Variable("job", "Job", jobs, "job_name", many=False),
        Variable("kind", "Kind", series(operator.JOB_STATE, IN_NAMESPACE, 'job_name=~"$job"', *matchers), "kind"),
    ]
