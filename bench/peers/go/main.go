// The AWS SDK for Go v2: batches of ten from a file of ids, so many at once, one attempt each.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/snowdevicemanagement"
	"github.com/aws/aws-sdk-go-v2/service/snowdevicemanagement/types"
)

func cpu() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func main() {
	url, path := os.Args[1], os.Args[2]
	workers, err := strconv.Atoi(os.Args[3])
	if err != nil {
		panic(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	ids := strings.Fields(string(data))
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = workers, workers
	client := snowdevicemanagement.New(snowdevicemanagement.Options{
		Region:       "us-west-2",
		BaseEndpoint: aws.String(url),
		HTTPClient:   &http.Client{Transport: transport},
		Retryer:      aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "bench", SecretAccessKey: "bench"}, nil
		}),
	})
	latencies := make([]float64, (len(ids)+9)/10)
	var next atomic.Int64
	var group sync.WaitGroup
	cpuBegan, began := cpu(), time.Now()
	for worker := 0; worker < workers; worker++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				first := int(next.Add(10)) - 10
				if first >= len(ids) {
					return
				}
				sent := time.Now()
				_, err := client.CreateTask(context.Background(), &snowdevicemanagement.CreateTaskInput{
					Targets:     ids[first:min(first+10, len(ids))],
					ClientToken: aws.String(fmt.Sprintf("%064d", first)),
					Command:     &types.CommandMemberReboot{Value: types.Reboot{}},
				})
				if err != nil {
					panic(err)
				}
				latencies[first/10] = float64(time.Since(sent).Microseconds()) / 1e3
			}
		}()
	}
	group.Wait()
	out, _ := json.Marshal(map[string]any{
		"cpu_s": cpu() - cpuBegan, "wall_s": time.Since(began).Seconds(), "latencies_ms": latencies,
	})
	fmt.Println(string(out))
}
