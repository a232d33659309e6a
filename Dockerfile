# sandboxd and nothing else, as pods of any image get it. Its context is the folder of the static binary:
#   scripts/build-static && docker build -t localhost/wharf-sandboxd:0.1.0 -f Dockerfile target/static
# scripts/build-image makes the same image without docker.
FROM scratch
COPY wharf-sandboxd /wharf-sandboxd
ENTRYPOINT ["/wharf-sandboxd"]
