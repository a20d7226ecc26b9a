# Three images from one file: `web` and `predict` do not contain TensorFlow, `train` does.
#   docker build --target predict -t hemoscan-predict .

ARG PYTHON_IMAGE=python:3.12-slim@sha256:2f17fc044b579bab302c2e8054d3a686e2cb9a83de48e70534b94cd8ebbe06a9
FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOST=0.0.0.0 \
    HOME=/tmp \
    HEMOSCAN_HOME=/var/hemoscan
WORKDIR /app
# The volumes inherit the owner of these folders.
RUN useradd --system --uid 10001 --no-create-home hemoscan \
    && install --directory --owner=hemoscan --mode=0700 /var/hemoscan /files
COPY webapp/requirements.txt webapp/requirements.txt
RUN pip install --no-cache-dir --require-hashes -r webapp/requirements.txt

FROM base AS web
COPY webapp webapp
COPY migrations migrations
# Setup stores the starter models; the web application uses only these modules of `ml`.
COPY ml/__init__.py ml/catalogue.py ml/errors.py ml/expected_fits.py ml/expected_time.py ml/named_points.py ml/verdict.py ml/
COPY ml/files ml/files
COPY ml/starter ml/starter
COPY ml/starter_series ml/starter_series
# Compiled once here: /app is read-only later, and each process would compile all of it again.
RUN python -m compileall -q webapp ml migrations
USER 10001
EXPOSE 8000
CMD ["python", "-m", "gunicorn", "--config", "webapp/gunicorn.conf.py", "webapp:create_app()"]

FROM base AS predict
COPY worker/requirements.txt worker/requirements.txt
RUN pip install --no-cache-dir --require-hashes -r worker/requirements.txt
COPY webapp webapp
COPY ml ml
COPY worker worker
COPY listener listener
RUN python -m compileall -q webapp ml worker listener
USER 10001

FROM base AS train
COPY ml/requirements.txt ml/requirements.txt
RUN pip install --no-cache-dir --require-hashes -r ml/requirements.txt
COPY webapp webapp
COPY ml ml
COPY worker worker
RUN python -m compileall -q webapp ml worker
USER 10001
